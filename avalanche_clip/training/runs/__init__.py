"""Whole runs: how they are stored, resumed and evaluated over time."""
