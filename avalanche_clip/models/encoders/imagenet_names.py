"""Class names, templates and WordNet ids of ImageNet-1K, from installed libraries."""

from __future__ import annotations

import functools


def imagenet_class_names() -> tuple[str, ...]:
    """Return the 1,000 class names published with CLIP, as open_clip has them.

    They follow the sorted WordNet ids: ``"tench"``, ``"goldfish"``, ...
    Two names occur twice ("missile", "sunglasses").
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[str, ...]:
    """Return the 80 prompt templates of CLIP's evaluation, as open_clip has them."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids of ImageNet-1K, sorted, as timm has them."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())
