"""`llamactl inbox`."""
