"""What happens without a request: messages leave, leases end, timers are due."""
