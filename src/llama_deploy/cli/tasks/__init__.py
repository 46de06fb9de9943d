"""`llamactl tasks`."""
