"""The work of one instance: claims, leases, heartbeats, and the attempts that it holds."""
