"""Benchmarks: image-text data sets, streams over time, embedded data.

Names load on first use: the readers in ``datasets`` need no Avalanche, which
takes many seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "CorruptSampleError": "data",
    "FieldCollate": "batch",
    "ImageTextBatch": "batch",
    "RandomCaption": "prepare",
    "attribute_array": "data",
    "emoji_dataset": "classic.tic_emoji",
    "find_corrupt_samples": "data",
    "make_image_text_dataset": "data",
    "prepare_benchmark": "prepare",
    "replay_quotas": "quotas",
    "split_online": "splits",
    "split_validation": "splits",
    "tic_emoji": "classic.tic_emoji",
    "tic_emoji_joint": "classic.tic_emoji",
    "time_stamped_benchmark": "generators",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


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
