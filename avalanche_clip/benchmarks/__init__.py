"""Benchmarks: image-text data sets, streams over time, embedded data.

Names load on first use: the readers in ``datasets`` need no Avalanche, which
takes many seconds to import.
"""

from typing import TYPE_CHECKING

from avalanche_clip._lazy import lazy_names

if TYPE_CHECKING:
    from avalanche_clip.benchmarks.batch import FieldCollate, ImageTextBatch
    from avalanche_clip.benchmarks.classic.tic_emoji import (
        emoji_dataset,
        tic_emoji,
        tic_emoji_joint,
    )
    from avalanche_clip.benchmarks.data import (
        CorruptSampleError,
        attribute_array,
        find_corrupt_samples,
        make_image_text_dataset,
    )
    from avalanche_clip.benchmarks.generators import time_stamped_benchmark
    from avalanche_clip.benchmarks.prepare import RandomCaption, prepare_benchmark
    from avalanche_clip.benchmarks.quotas import replay_quotas
    from avalanche_clip.benchmarks.splits import split_online, split_validation

_MODULES = {
    "CorruptSampleError": "avalanche_clip.benchmarks.data",
    "FieldCollate": "avalanche_clip.benchmarks.batch",
    "ImageTextBatch": "avalanche_clip.benchmarks.batch",
    "RandomCaption": "avalanche_clip.benchmarks.prepare",
    "attribute_array": "avalanche_clip.benchmarks.data",
    "emoji_dataset": "avalanche_clip.benchmarks.classic.tic_emoji",
    "find_corrupt_samples": "avalanche_clip.benchmarks.data",
    "make_image_text_dataset": "avalanche_clip.benchmarks.data",
    "prepare_benchmark": "avalanche_clip.benchmarks.prepare",
    "replay_quotas": "avalanche_clip.benchmarks.quotas",
    "split_online": "avalanche_clip.benchmarks.splits",
    "split_validation": "avalanche_clip.benchmarks.splits",
    "tic_emoji": "avalanche_clip.benchmarks.classic.tic_emoji",
    "tic_emoji_joint": "avalanche_clip.benchmarks.classic.tic_emoji",
    "time_stamped_benchmark": "avalanche_clip.benchmarks.generators",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "CorruptSampleError",
    "FieldCollate",
    "ImageTextBatch",
    "RandomCaption",
    "attribute_array",
    "emoji_dataset",
    "find_corrupt_samples",
    "make_image_text_dataset",
    "prepare_benchmark",
    "replay_quotas",
    "split_online",
    "split_validation",
    "tic_emoji",
    "tic_emoji_joint",
    "time_stamped_benchmark",
]
