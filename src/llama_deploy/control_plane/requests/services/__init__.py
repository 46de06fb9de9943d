"""Requests for services, and from their instances."""
