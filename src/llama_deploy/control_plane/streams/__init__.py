"""Event streams and who waits for them."""
