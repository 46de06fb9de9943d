"""The service as its users see it: base class, settings, the workflow service, its HTTP routes."""
