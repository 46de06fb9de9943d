"""Calls that run at the same time: in batches, again with backoff, and until they are cancelled or closed."""
