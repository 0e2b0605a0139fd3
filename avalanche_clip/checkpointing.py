"""Save and load the state of a run."""

from avalanche_clip._exports import face

__getattr__, __dir__, __all__ = face(__name__)
