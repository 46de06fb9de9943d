"""`llamactl keys`: who may use the servers."""
