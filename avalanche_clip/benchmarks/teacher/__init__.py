"""Stored features of teachers."""
