"""`llamactl sessions`."""
