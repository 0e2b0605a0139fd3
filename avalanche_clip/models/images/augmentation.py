"""Settings of the augmentation of small drawings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from avalanche_clip.common.checks import as_finite

FORMER: dict[str, Any] = {
    **dict.fromkeys(("shear", "hue", "grayscale", "blur"), 0),
    **dict.fromkeys(("thin", "flatten", "thicken"), 0),
    "interpolation": "bilinear",
}
"""Settings that files of earlier versions name, with the values that are honoured."""


@dataclass(frozen=True)
class TinyAugmentation:
    """One affine map and one colour map for small drawings on white.

    :param scale: range of the zoom factor; below 1 adds white border.
    :param translate: largest shift, as a fraction of the side.
    :param degrees: largest rotation, either way.
    :param brightness: largest relative change.
    :param contrast: largest relative change about the image's mean grey.
    :param saturation: largest relative change.

    Source: our choice; the value of every field can be searched.
    """

    scale: tuple[float, float] = (0.85, 1.15)
    translate: float = 0.06
    degrees: float = 5.0
    _: KW_ONLY  # shear, which is gone, was next
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale={self.scale} must satisfy 0 < low <= high.")
        object.__setattr__(self, "scale", (float(low), float(high)))
        for name in ("translate", "brightness", "contrast", "saturation"):
            as_finite(getattr(self, name), name, low=0, high=1)
        as_finite(self.degrees, "degrees", low=0, below=360)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TinyAugmentation:
        """Read the entry ``augmentation`` of a configuration.

        :raises ValueError: for a former setting that is in use.
        """
        values = dict(values)
        for name, honoured in FORMER.items():
            if values.pop(name, honoured) != honoured:
                raise ValueError(
                    f"{name} is no setting any more; leave it out, or filter pictures "
                    "before the transform"
                )
        return cls(**values)
