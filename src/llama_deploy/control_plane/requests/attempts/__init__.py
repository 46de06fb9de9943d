"""Requests and reports of instances."""
