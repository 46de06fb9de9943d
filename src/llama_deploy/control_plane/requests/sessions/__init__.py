"""Requests of clients for sessions."""
