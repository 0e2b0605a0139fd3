"""What varies icons in training: their colours, and the order of words."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import icon_web
import numpy as np
import torch
from PIL import Image


class Coloured:
    """Colour the icons of one colour at random, then transform as a model wants.

    The ink is black, dark, of any colour, or a darker shade of the largest area it
    encloses; enclosed areas get colours of their own or stay white. Behind some
    drawings is a pale background. Other pictures are left as they are.

    :param transform: applied to the coloured picture.

    All randomness comes from torch's generator.
    """

    deterministic = False
    BLACK, DARK, ANY = 0.15, 0.35, 0.3  # shares of inks; the rest has shades
    FILLED = 0.7
    BACKGROUND = 0.15

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Image.Image) and image.mode in ("LA", "RGBA"):
            image = self.colour(image)
        return self.transform(image)

    def colour(self, icon: Image.Image) -> Image.Image:
        """Return an icon in RGB."""
        kind, back, *inks = torch.rand(12).tolist()
        pixels = np.asarray(icon)
        alpha = pixels[..., -1:].astype(np.float32) / 255
        white = np.full(3, 255.0)
        paper = white
        if back < self.BACKGROUND:
            paper = _colour(inks[0], 0.05 + 0.35 * inks[1], 0.8 + 0.2 * inks[2])
        if icon.mode == "RGBA":
            shown, inside = pixels[..., :3], paper
        else:
            areas = pixels[..., 0]
            draws = torch.rand(icon_web.MOST_AREAS, 4).tolist()
            fills = [_bright(d[:3]) if d[3] < self.FILLED else white for d in draws]
            shown = self._ink(kind, inks[3:], fills[0] if areas.any() else None)
            inside = np.stack([paper, *(fills if kind >= self.BLACK else [paper] * 7)])[
                areas
            ]
        mixed = shown * alpha + inside * (1 - alpha)
        return Image.fromarray((mixed + 0.5).clip(0, 255).astype(np.uint8))

    def _ink(
        self, kind: float, draws: Sequence[float], fill: np.ndarray | None
    ) -> np.ndarray:
        if kind < self.BLACK:
            return np.zeros(3)
        if kind < self.BLACK + self.DARK:
            return _colour(draws[0], draws[1], 0.45 * draws[2])
        if kind < self.BLACK + self.DARK + self.ANY or fill is None:
            return _bright(draws)
        return (0.6 + 0.4 * draws[0]) * fill

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.transform!r})"


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))


def _bright(draws: Sequence[float]) -> np.ndarray:
    return _colour(draws[0], 0.25 + 0.75 * draws[1], 0.55 + 0.45 * draws[2])


class ShuffledWords:
    """Now and then shuffle the words of the caption that is drawn.

    Icons say "tree evergreen" where emoji say "evergreen tree".

    :param choose: draws one caption of several.
    :param share: how often words are shuffled.
    """

    def __init__(self, choose: Any, share: float) -> None:
        self.choose = choose
        self.share = share

    def __call__(self, captions: Any) -> str:
        caption: str = self.choose(captions)
        words = caption.split()
        if len(words) < 2 or float(torch.rand(())) >= self.share:
            return caption
        return " ".join(words[i] for i in torch.randperm(len(words)).tolist())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.choose!r}, {self.share})"
