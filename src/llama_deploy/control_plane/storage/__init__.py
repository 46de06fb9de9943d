"""Grouped transactions: what they read, change in memory and write."""
