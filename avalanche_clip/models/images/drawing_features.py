"""Features of drawings made by hand: strokes and colours, no words and no training."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from avalanche_clip.common.checks import require_some
from avalanche_clip.models.images.transforms import to_rgb

_SIZE = (48, 48)
_CELLS, _DIRECTIONS = 6, 8


def drawing_features(pictures: Iterable[Image.Image]) -> Tensor:
    """Describe drawings by what can be seen only: edges and colours of 6 x 6 cells.

    Half of a feature is the square root of the length of the edges in each of 8
    directions, less their mean in the cell; half is the mean colour of the cell, less
    that of the drawing. Each half has length 1 before both are joined, or is zero on
    an empty sheet. A vision-only reference for drawings, in the place that DINOv2 has
    for photographs.

    :param pictures: PIL images of any size and mode; they are scaled to 48 x 48.
    :return: float32, ``(N, 396)``, of length 1.
    :raises ValueError: if there are none.

    Source: our own; the half of the edges follows Dalal and Triggs, CVPR 2005.

    >>> drawing_features([Image.new("RGB", (9, 9), "red")]).shape
    torch.Size([1, 396])
    """
    rows = []
    for picture in pictures:
        rgb = to_rgb(picture)
        if rgb.size != _SIZE:
            rgb = rgb.resize(_SIZE, Image.Resampling.BOX)
        rows.append(pil_to_tensor(rgb))
    require_some(rows, "pictures")
    blocks = torch.stack(rows).split(512)
    return torch.cat([_features(block.float() / 255) for block in blocks])


def _features(images: Tensor) -> Tensor:
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    down = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    along = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    turn = torch.atan2(down, along) / (2 * math.pi) * _DIRECTIONS
    direction = turn.round().long() % _DIRECTIONS
    kinds = F.one_hot(direction, _DIRECTIONS).permute(0, 3, 1, 2)
    edges = kinds * torch.hypot(down, along)[:, None]
    edges = F.adaptive_avg_pool2d(edges, _CELLS).sqrt()
    colours = F.adaptive_avg_pool2d(images, _CELLS)
    parts = [edges - edges.mean(1, keepdim=True), colours - colours.mean((2, 3), True)]
    return F.normalize(torch.cat([F.normalize(p.flatten(1)) for p in parts], 1))
