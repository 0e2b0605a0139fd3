"""Ready-made benchmarks."""

from avalanche_clip.benchmarks.classic.cil import (
    cil_cifar100,
    cil_imagenet1k,
    cil_imagenet100,
    cil_tiny_imagenet,
)
from avalanche_clip.benchmarks.classic.mtil import mtil, x_tail
from avalanche_clip.benchmarks.classic.multi_domain_emoji import multi_domain_emoji
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
    "cil_cifar100",
    "cil_imagenet100",
    "cil_imagenet1k",
    "cil_tiny_imagenet",
    "emoji_dataset",
    "multi_domain_emoji",
    "mtil",
    "tic_emoji",
    "tic_emoji_joint",
    "x_tail",
    "emoji_dataset",
    "emoji_language_dataset",
    "language_order",
    "multilingual_coco36",
    "multilingual_emoji",
    "tic_emoji",
    "tic_emoji_joint",
]
