"""`llamactl serve` and `worker`: the processes that they start, and how these end."""
