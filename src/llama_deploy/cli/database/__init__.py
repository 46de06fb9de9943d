"""`llamactl db`: the state store."""
