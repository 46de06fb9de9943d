"""Message queues: the contract, and one backend a file."""
