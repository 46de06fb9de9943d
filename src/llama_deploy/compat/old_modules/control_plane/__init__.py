"""Old modules of `llama_deploy.control_plane`."""
