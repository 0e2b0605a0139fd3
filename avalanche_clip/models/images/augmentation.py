"""Settings of the augmentation of small drawings."""

from __future__ import annotations

from dataclasses import dataclass

from avalanche_clip.common.checks import as_finite, require_choice


@dataclass(frozen=True)
class TinyAugmentation:
    """One affine map and one colour map for small drawings on white.

    :param scale: range of the zoom factor; below 1 adds white border.
    :param translate: largest shift, as a fraction of the side.
    :param degrees: largest rotation, either way.
    :param shear: largest horizontal shear in degrees, either way.
    :param brightness: largest relative change.
    :param contrast: largest relative change about the image's mean grey.
    :param saturation: largest relative change.
    :param hue: largest turn as a fraction of the colour circle, in [0, 0.5].
    :param grayscale: probability of dropping all colour.
    :param blur: probability of a Gaussian blur of radius 0.5 to 1 pixel.
    :param thin: probability of a 3x3 maximum filter, which thins or removes
        dark outlines.
    :param flatten: probability of a 3x3 median filter, which removes texture.
    :param thicken: probability of a 3x3 minimum filter, which thickens
        outlines. At most one of the three is applied: styles of drawing
        differ in outlines and texture before anything else.
    :param interpolation: ``"bilinear"`` or ``"bicubic"``.

    Source: our choice; the value of every field can be searched.
    """

    scale: tuple[float, float] = (0.85, 1.15)
    translate: float = 0.06
    degrees: float = 5.0
    shear: float = 0.0
    brightness: float = 0.1
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    thin: float = 0.0
    flatten: float = 0.0
    thicken: float = 0.0
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale={self.scale} must satisfy 0 < low <= high.")
        object.__setattr__(self, "scale", (float(low), float(high)))
        for name in ("translate", "brightness", "contrast", "saturation"):
            as_finite(getattr(self, name), name, low=0, high=1)
        for name in ("grayscale", "blur", "thin", "flatten", "thicken"):
            hint = "a probability"
            as_finite(getattr(self, name), name, low=0, high=1, hint=hint)
        if self.thin + self.flatten + self.thicken > 1:
            raise ValueError(
                "thin + flatten + thicken are probabilities of which one happens; "
                f"their sum {self.thin + self.flatten + self.thicken} exceeds 1."
            )
        as_finite(self.hue, "hue", low=0, high=0.5)
        as_finite(self.shear, "shear", low=0, below=90)
        as_finite(self.degrees, "degrees", low=0, below=360)
        require_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))
