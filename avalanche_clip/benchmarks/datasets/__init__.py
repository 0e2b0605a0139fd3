"""Readers of data sets, free of Avalanche."""

from avalanche_clip._exports import face

__getattr__, __dir__, __all__ = face(__name__)
