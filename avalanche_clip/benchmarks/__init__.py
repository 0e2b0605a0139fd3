"""Benchmarks: image-text data sets, streams over time, embedded data.

Names load on first use: the readers in ``datasets`` need no Avalanche, which
takes many seconds to import.
"""

from avalanche_clip._exports import face

__getattr__, __dir__, __all__ = face(__name__)
