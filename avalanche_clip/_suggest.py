"""Former place of checks that moved to :mod:`avalanche_clip.common.checks`."""

from avalanche_clip.common.checks import closest, did_you_mean, require_choice

__all__ = ["closest", "did_you_mean", "require_choice"]
