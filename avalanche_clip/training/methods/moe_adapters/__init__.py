"""Mixture-of-experts adapters."""
