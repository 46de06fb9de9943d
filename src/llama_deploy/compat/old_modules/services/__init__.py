"""Old modules of `llama_deploy.services`."""
