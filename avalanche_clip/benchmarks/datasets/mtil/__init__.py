"""The data sets of MTIL and of class-incremental streams, free of Avalanche.

Importing this package loads NumPy and Pillow only; torch and torchvision load
when a data set is read.
"""

from avalanche_clip._exports import face

__getattr__, __dir__, __all__ = face(__name__)
