"""Suites: sets of tasks that a model is scored on beside its stream."""

from avalanche_clip._exports import face

__getattr__, __dir__, __all__ = face(__name__)
