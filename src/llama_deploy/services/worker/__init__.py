"""The work of one instance: intake, claims, slots, leases, and the attempts that it holds."""
