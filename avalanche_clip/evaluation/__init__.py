"""Evaluation: pure metrics, their Avalanche shells, loggers, plots and reports.

Nothing is imported here, because :mod:`avalanche_clip.evaluation.functional` has
to stay free of Avalanche.
"""

__all__: list[str] = []
