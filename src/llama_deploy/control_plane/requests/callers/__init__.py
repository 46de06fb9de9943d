"""Who makes requests: API keys."""
