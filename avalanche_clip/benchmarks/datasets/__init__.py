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

__all__ = [
    "EMOJI_LANGUAGES",
    "EMOJI_SIZE",
    "EMOJI_STEPS",
    "EMOJI_STYLES",
    "EmojiImages",
    "EmojiPairs",
    "EmojiStep",
    "EmojiTable",
    "load_emoji_table",
    "validation_mask",
]
