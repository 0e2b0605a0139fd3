"""Mixtures of adapters."""
