"""Requests of clients for tasks, their streams and their questions."""
