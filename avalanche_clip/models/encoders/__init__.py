"""Dual encoders: making, loading and saving them."""
