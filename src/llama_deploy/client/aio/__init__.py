"""The client for asyncio: what `llama_deploy.client` does, driven by an event loop."""
