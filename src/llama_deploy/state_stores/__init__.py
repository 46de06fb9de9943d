"""State stores: the contract, and one backend a file."""
