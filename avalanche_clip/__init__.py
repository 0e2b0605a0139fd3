"""Continual learning of CLIP-like image-text models, built on Avalanche.

The package root is lazy: importing it loads no other library, and each public
name is imported from its module on first use.

>>> import avalanche_clip
>>> avalanche_clip.__version__
'0.1.0'
"""

from avalanche_clip._exports import face

__version__ = "0.1.0"

__getattr__, __dir__, _names = face(__name__)
__all__ = ["__version__", *_names]
