"""Old modules of `llama_deploy.client`."""
