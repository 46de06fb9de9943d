"""The client for asyncio. `make sync-client` generates `llama_deploy.client.sync` from it.

Two modules here differ from their counterparts in `sync` and are written by hand: this one and `waiting`.
"""
