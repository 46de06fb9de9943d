"""Run agentic workflows as networked, durable, observable services."""
