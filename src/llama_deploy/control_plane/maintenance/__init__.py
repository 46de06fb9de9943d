"""What keeps a store small, and what operators ask of it."""
