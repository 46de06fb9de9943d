"""Event streams and their readers."""
