"""Prompt templates of the MTIL domains; the first one is the training prompt.

Every template has exactly one ``{}``, which the class name replaces.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and the authors' released
code; Radford et al., ICML 2021 (CLIP, arXiv 2103.00020) for ImageNet; X-TAIL and
class-incremental templates after the works named in
:mod:`avalanche_clip.benchmarks.classic`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from avalanche_clip.models.encoders.imagenet_names import imagenet_templates


def _both_articles(forms: str) -> tuple[str, ...]:
    """All forms, divided by bars, with "a" in place of ``*``, then all with "the"."""
    listed = forms.split(" | ")
    return tuple(f.replace("*", article) for article in ("a", "the") for f in listed)


_CALTECH = _both_articles(
    "a photo of * {}. | a painting of * {}. | * plastic {}. | a sculpture of * {}. | "
    "a sketch of * {}. | a tattoo of * {}. | * toy {}. | a rendition of * {}. | "
    "* embroidered {}. | * cartoon {}. | * {} in a video game. | * plushie {}. | "
    "* origami {}. | art of * {}. | graffiti of * {}. | a drawing of * {}. | "
    "a doodle of * {}."
)
_CIFAR = _both_articles(
    "a photo of * {}. | a blurry photo of * {}. | a black and white photo of * {}. | "
    "a low contrast photo of * {}. | a high contrast photo of * {}. | "
    "a bad photo of * {}. | a good photo of * {}. | a photo of * small {}. | "
    "a photo of * big {}."
)
_CARS = (
    "a photo of a {}, a type of car. | a photo of a {}. | a photo of the {}. | "
    "a photo of my {}. | i love my {}! | a photo of my dirty {}. | "
    "a photo of my clean {}. | a photo of my new {}. | a photo of my old {}."
)

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "Aircraft": _both_articles("a photo of * {}, a type of aircraft."),
    "Caltech101": _CALTECH,
    "CIFAR10": _CIFAR,
    "CIFAR100": _CIFAR,
    "DTD": _both_articles(
        "a photo of * {} texture. | a photo of * {} pattern. | "
        "a photo of * {} thing. | a photo of * {} object."
    ),
    "EuroSAT": tuple(
        f"a centered satellite photo of {article}{{}}."
        for article in ("", "a ", "the ")
    ),
    "Flowers": ("a photo of a {}, a type of flower.",),
    "Food": ("a photo of a {}, a type of food.",),
    "MNIST": ('a photo of the number: "{}".',),
    "OxfordPet": ("a photo of a {}, a type of pet.",),
    "StanfordCars": tuple(_CARS.split(" | ")),
    "SUN397": ("a photo of a {}.", "a photo of the {}."),
}


class _Templates(Mapping[str, tuple[str, ...]]):
    """Templates by data set; those of ImageNet are open_clip's, which loads late."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        if name != "ImageNet":
            return _TEMPLATES[name]
        first = "a photo of a {}."
        return (first, *(t for t in imagenet_templates() if t != first))

    def __iter__(self) -> Iterator[str]:
        return iter((*_TEMPLATES, "ImageNet"))

    def __len__(self) -> int:
        return len(_TEMPLATES) + 1


MTIL_TEMPLATES: Mapping[str, tuple[str, ...]] = _Templates()
"""Templates by name of the data set, in the order of the released code.

ImageNet has the 80 of CLIP's evaluation; the one that ZSCL trains with comes first,
which changes no mean over them."""

X_TAIL_TEMPLATES: dict[str, str] = {
    "Aircraft": "a photo of a {}, a type of aircraft.",
    "Caltech101": "a photo of a {}.",
    "DTD": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Flowers": "a photo of a {}, a type of flower.",
    "Food": "a photo of {}, a type of food.",
    # On names such as: number: "0 - zero".
    "MNIST": "a photo of a {}.",
    "OxfordPet": "a photo of a {}, a type of pet.",
    "StanfordCars": "a photo of a {}.",
    "SUN397": "a photo of a {}.",
}
"""The template of each domain of X-TAIL, as released."""

CIL_TEMPLATES: dict[str, tuple[str, ...]] = {
    "CIFAR100": ("a bad photo of a {}.",),
    "TinyImageNet": ("a bad photo of a {}.",),
    "ImageNet100": ("a good photo of a {}.",),
    "ImageNet1K": ("a good photo of a {}.",),
    "ImageNetR": ("a bad photo of a {}.",),
    "CORe50": ("a good photo of a {}.",),
}
"""Templates of the benchmarks of Continual-CLIP, ZSCL and SIT."""
