"""Ready-made benchmarks."""

from avalanche_clip.benchmarks.classic.tic_emoji import (
    emoji_dataset,
    tic_emoji,
    tic_emoji_joint,
)

__all__ = ["emoji_dataset", "tic_emoji", "tic_emoji_joint"]
