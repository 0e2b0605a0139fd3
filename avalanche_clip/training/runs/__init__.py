"""Runs over a stream: files, resume, record."""
