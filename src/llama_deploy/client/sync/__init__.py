"""The client for threads: what `llama_deploy.client` does, without an event loop."""
