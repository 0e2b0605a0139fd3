"""Prompt templates of the MTIL domains; the first one is the training prompt.

Every template has exactly one ``{}``, which the class name replaces.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and the authors' released
code; X-TAIL and class-incremental templates after the works named in
:mod:`avalanche_clip.benchmarks.classic`.
"""

from __future__ import annotations

from collections.abc import Sequence


def _both_articles(forms: Sequence[str]) -> tuple[str, ...]:
    """All forms with "a" in place of ``*``, then all with "the"."""
    return tuple(f.replace("*", article) for article in ("a", "the") for f in forms)


_CALTECH = _both_articles(
    (
        "a photo of * {}.",
        "a painting of * {}.",
        "* plastic {}.",
        "a sculpture of * {}.",
        "a sketch of * {}.",
        "a tattoo of * {}.",
        "* toy {}.",
        "a rendition of * {}.",
        "* embroidered {}.",
        "* cartoon {}.",
        "* {} in a video game.",
        "* plushie {}.",
        "* origami {}.",
        "art of * {}.",
        "graffiti of * {}.",
        "a drawing of * {}.",
        "a doodle of * {}.",
    )
)

_CIFAR = _both_articles(
    (
        "a photo of * {}.",
        "a blurry photo of * {}.",
        "a black and white photo of * {}.",
        "a low contrast photo of * {}.",
        "a high contrast photo of * {}.",
        "a bad photo of * {}.",
        "a good photo of * {}.",
        "a photo of * small {}.",
        "a photo of * big {}.",
    )
)

MTIL_TEMPLATES: dict[str, tuple[str, ...]] = {
    "Aircraft": _both_articles(("a photo of * {}, a type of aircraft.",)),
    "Caltech101": _CALTECH,
    "CIFAR10": _CIFAR,
    "CIFAR100": _CIFAR,
    "DTD": _both_articles(
        tuple(
            f"a photo of * {{}} {noun}."
            for noun in ("texture", "pattern", "thing", "object")
        )
    ),
    "EuroSAT": tuple(
        f"a centered satellite photo of {article}{{}}."
        for article in ("", "a ", "the ")
    ),
    "Flowers": ("a photo of a {}, a type of flower.",),
    "Food": ("a photo of a {}, a type of food.",),
    "MNIST": ('a photo of the number: "{}".',),
    "OxfordPet": ("a photo of a {}, a type of pet.",),
    "StanfordCars": (
        "a photo of a {}, a type of car.",
        "a photo of a {}.",
        "a photo of the {}.",
        "a photo of my {}.",
        "i love my {}!",
        "a photo of my dirty {}.",
        "a photo of my clean {}.",
        "a photo of my new {}.",
        "a photo of my old {}.",
    ),
    "SUN397": ("a photo of a {}.", "a photo of the {}."),
    "ImageNet": ("a photo of a {}.",),
}
"""Templates by name of the data set, in the order of the released code."""

X_TAIL_TEMPLATES = ("a photo of a {}.",)
"""The only template of X-TAIL, for every domain."""

CIL_TEMPLATES: dict[str, tuple[str, ...]] = {
    "CIFAR100": ("a bad photo of a {}.",),
    "TinyImageNet": ("a bad photo of a {}.",),
    "ImageNet100": ("a good photo of a {}.",),
    "ImageNet1K": ("a good photo of a {}.",),
}
"""Templates of the class-incremental benchmarks (Continual-CLIP, ZSCL)."""

__all__ = ["CIL_TEMPLATES", "MTIL_TEMPLATES", "X_TAIL_TEMPLATES"]
