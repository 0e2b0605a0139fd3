"""Evaluation: pure metrics, their Avalanche shells, loggers, plots and reports.

Names are loaded on first use, because :mod:`avalanche_clip.evaluation.functional`
has to stay free of Avalanche.
"""

from avalanche_clip._exports import face

__getattr__, __dir__, __all__ = face(__name__)
