"""The service as its users see it: base class, the workflow service, its HTTP routes."""
