"""Former place of checks that moved to :mod:`avalanche_clip.common.checks`."""

from avalanche_clip.common.checks import as_finite, as_integer, as_integers, as_size

__all__ = ["as_finite", "as_integer", "as_integers", "as_size"]
