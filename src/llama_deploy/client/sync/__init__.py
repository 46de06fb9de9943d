"""The client without `await`, generated from `llama_deploy.client.aio` by `make sync-client`.

Do not edit the modules here, except this one and `waiting`, which are written by hand.
"""
