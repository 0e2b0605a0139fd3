"""Automatic selection of a domain (DDAS)."""
