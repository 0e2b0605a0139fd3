"""Readers of data sets, free of Avalanche."""

from .captioned import (
    LANGUAGES_36,
    CaptionedImages,
    missing_images,
    read_annotations,
    read_ground_truth,
)
from .coco36 import COCO36_LANGUAGES, Coco36, CocoTriplets
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
from .feature_store import TeacherFeatureStore
from .mtil import (
    MTIL_NAMES,
    MTILDomain,
    read_coop_split,
    read_imagenet,
    read_mtil_domain,
    read_tiny_imagenet,
    read_x_tail_domain,
)
from .released_features import read_feature_pickle, read_line_rows
from .text_columns import TextColumn, read_table
from .xm3600 import XM3600, XM3600_CAPTIONS, XM3600_LANGUAGES

__all__ = [
    "COCO36_LANGUAGES",
    "CaptionedImages",
    "Coco36",
    "CocoTriplets",
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
    "read_coop_split",
    "read_imagenet",
    "read_mtil_domain",
    "read_tiny_imagenet",
    "read_x_tail_domain",
    "LANGUAGES_36",
    "TeacherFeatureStore",
    "TextColumn",
    "XM3600",
    "XM3600_CAPTIONS",
    "XM3600_LANGUAGES",
    "load_emoji_table",
    "missing_images",
    "read_annotations",
    "read_feature_pickle",
    "read_ground_truth",
    "read_line_rows",
    "read_table",
    "validation_mask",
]
