"""Readers of data sets, free of Avalanche."""

from .emoji import (
    EMOJI_LANGUAGES,
    EMOJI_SIZE,
    EMOJI_STEPS,
    EMOJI_STYLES,
    EmojiImages,
    EmojiPairs,
    EmojiStep,
    EmojiTable,
    load_emoji_table,
    validation_mask,
)
from .mtil import (
    MTIL_NAMES,
    MTILDomain,
    read_imagenet,
    read_mtil_domain,
    read_tiny_imagenet,
)

__all__ = [
    "EMOJI_LANGUAGES",
    "EMOJI_SIZE",
    "EMOJI_STEPS",
    "EMOJI_STYLES",
    "MTIL_NAMES",
    "EmojiImages",
    "EmojiPairs",
    "EmojiStep",
    "EmojiTable",
    "MTILDomain",
    "load_emoji_table",
    "read_imagenet",
    "read_mtil_domain",
    "read_tiny_imagenet",
    "validation_mask",
]
