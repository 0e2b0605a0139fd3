"""Pairs of images and texts: items, batches, facts, scenarios."""
