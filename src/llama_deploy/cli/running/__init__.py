"""`llamactl run` and `send`: tasks and events from the command line."""
