"""Ready-made benchmarks."""

from avalanche_clip.benchmarks.classic.multilingual_coco36 import multilingual_coco36
from avalanche_clip.benchmarks.classic.multilingual_emoji import (
    emoji_language_dataset,
    language_order,
    multilingual_emoji,
)
from avalanche_clip.benchmarks.classic.tic_emoji import (
    emoji_dataset,
    tic_emoji,
    tic_emoji_joint,
)

__all__ = [
    "emoji_dataset",
    "emoji_language_dataset",
    "language_order",
    "multilingual_coco36",
    "multilingual_emoji",
    "tic_emoji",
    "tic_emoji_joint",
]
