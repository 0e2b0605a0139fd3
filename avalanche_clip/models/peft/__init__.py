"""Branches beside the blocks of frozen towers."""
