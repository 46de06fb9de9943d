"""Old modules of `llama_deploy.deploy`."""
