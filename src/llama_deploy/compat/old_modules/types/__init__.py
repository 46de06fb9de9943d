"""Old modules of `llama_deploy.types`."""
