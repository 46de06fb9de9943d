"""Which values leave their process, what they are in JSON, and which names mean the same in every process."""
