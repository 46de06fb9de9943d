"""Old modules of `llama_deploy.message_queues`."""
