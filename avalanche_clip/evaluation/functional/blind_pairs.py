"""Pairs of images that look the same to CLIP and different to another encoder."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.common.checks import (
    as_finite,
    as_size,
    require_alike,
    require_length,
)
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_float_matrix
from avalanche_clip.evaluation.functional.ranks import full_products

MOST_LISTED = 2_000_000
"""Most pairs that :func:`clip_blind_pairs` lists, some 400 MB."""

_NAMES = ("clip", "reference")
_ROWS_PER_BLOCK = 256  # so that they stay in the caches


class BlindPair(NamedTuple):
    """Two images ``first < second`` and their cosines to CLIP and the reference."""

    first: int
    second: int
    clip_cosine: float
    reference_cosine: float


def clip_blind_pairs(
    clip_features: ArrayLike,
    reference_features: ArrayLike,
    *,
    clip_threshold: float = 0.95,
    reference_threshold: float = 0.6,
    max_per_image: int | None = None,
    duplicate_threshold: float | None = None,
    chunk_size: int = 1024,
) -> list[BlindPair]:
    """Find the pairs of images that CLIP confuses and another encoder tells apart.

    A pair is blind when its cosine to CLIP is above one threshold and its cosine to
    the reference below the other, both strictly; cosines are rounded to the type of
    the features. Tiles of the upper triangle of the first product are computed, the
    second bank is read for the candidates that they leave only. The result depends
    neither on ``chunk_size`` nor on the length of the features.

    Memory beyond the inputs: a normalised copy of ``clip_features``, one tile, and
    about 200 bytes per pair found.

    :param clip_features: of N images, ``(N, D)``, float32 or float64, of any length
        but zero. Any encoder may take the place of CLIP.
    :param reference_features: of the same images, ``(N, D')``, float32 or float64.
    :param clip_threshold: in [-1, 1].
    :param reference_threshold: in [-1, 1].
    :param max_per_image: largest number of pairs that an image is part of; pairs are
        taken in the order of the result. None: no bound.
    :param duplicate_threshold: drop pairs with both cosines above it, in [-1, 1];
        the paper's specification has 0.99. It matters with a higher
        ``reference_threshold`` only, and is refused otherwise. None: none are dropped.
    :param chunk_size: side of a tile, >= 1.
    :return: pairs by decreasing ``clip_cosine - reference_cosine``, then by number.
    :raises ValueError: if shapes, types or options do not fit, a value is not finite,
        a feature is zero, or there are more than :data:`MOST_LISTED` pairs.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209), section 2; thresholds of
    CLIP ViT-L-14 and DINOv2 ViT-L-14. Their pairs were then chosen by people.

    >>> turned = torch.tensor([0.0, 10, 20, 0, 60, 30]).deg2rad()
    >>> clip, dino = torch.stack([turned.cos(), turned.sin()], dim=1).split(3)
    >>> [(pair.first, pair.second) for pair in clip_blind_pairs(clip, dino)]
    [(0, 1)]
    """
    most = None if max_per_image is None else as_size(max_per_image, "max_per_image")
    pairs, banks = find_blind_pairs(
        (clip_features, reference_features),
        (clip_threshold, reference_threshold),
        chunk_size,
        most=MOST_LISTED,
    )
    columns = torch.stack([_cosines(bank, pairs).double() for bank in banks])
    if duplicate_threshold is not None:
        limit = as_finite(duplicate_threshold, "duplicate_threshold", low=-1, high=1)
        if limit >= reference_threshold:
            raise ValueError(
                f"duplicate_threshold={limit} has no effect, since blind pairs are "
                f"below reference_threshold={reference_threshold}; leave it out."
            )
        kept = columns.amin(0) <= limit
        pairs, columns = pairs[kept], columns[:, kept]
    # Pairs come sorted by number, and the sort is stable.
    order = (columns[1] - columns[0]).argsort(stable=True)
    rows = zip(*(part[order].tolist() for part in (*pairs.T, *columns)), strict=True)
    found = [BlindPair(*row) for row in rows]
    if most is None:
        return found
    used: Counter[int] = Counter()
    capped = []
    for pair in found:
        if max(used[pair.first], used[pair.second]) < most:
            used.update(pair[:2])
            capped.append(pair)
    return capped


@torch.no_grad()
def find_blind_pairs(
    features: tuple[ArrayLike, ArrayLike],
    thresholds: tuple[float, float],
    chunk_size: int = 1024,
    *,
    most: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return the numbers of the blind pairs, int64 ``(P, 2)``, sorted, and the banks.

    :param features: to CLIP and to the reference, see :func:`clip_blind_pairs`.
    :param thresholds: of CLIP and of the reference.
    :param chunk_size: side of a tile.
    :param most: largest number of pairs; more raise ValueError.
    """
    high, low = (
        as_finite(value, f"{name}_threshold", low=-1, high=1)
        for name, value in zip(_NAMES, thresholds, strict=True)
    )
    banks = [as_float_matrix(f"{n}_features", x) for n, x in zip(_NAMES, features)]
    for name, bank in zip(_NAMES, banks, strict=True):
        require_length(bank, len(banks[0]), f"rows of {name}_features", "image")
        if not bank.bool().any(1).all():
            row = int(bank.bool().any(1).int().argmin())
            raise ValueError(
                f"{name}_features of shape {tuple(bank.shape)} has zeros only in row "
                f"{row}, which has no direction; leave the image out."
            )
    clip, reference = banks
    do = "move the features of one encoder"
    require_alike(do, ("device",), clip_features=clip, reference_features=reference)
    side, count = as_size(chunk_size, "chunk_size"), len(clip)
    rows = torch.cat([_unit(part) for part in clip.split(_ROWS_PER_BLOCK)])
    memory = rows.new_empty(min(side, count) ** 2)
    found, total = [rows.new_empty(0, 2, dtype=torch.int64)], 0
    # autocast would lower the precision of the products
    with torch.autocast(rows.device.type, enabled=False), full_products():
        starts = range(0, count, side)
        for top, left in ((t, s) for t in starts for s in starts if s >= t):
            above, beside = rows[top : top + side], rows[left : left + side]
            tile = memory[: len(above) * len(beside)].view(len(above), len(beside))
            torch.mm(above, beside.T, out=tile)
            lowest = high - _rounding(clip)
            high_rows = (tile.amax(1) > lowest).nonzero()[:, 0]  # few, as a rule
            places = (tile[high_rows] > lowest).nonzero()
            places[:, 0] = high_rows[places[:, 0]]
            if top == left:
                places = places[places[:, 0] < places[:, 1]]
            pairs = places + places.new_tensor([top, left])
            pairs = pairs[_gaps(clip, pairs, tile[places.unbind(1)], high) > 0]
            (tops, row), (lefts, column) = (
                part.unique(return_inverse=True) for part in pairs.unbind(1)
            )
            others = _unit(reference[lefts]).T
            rough = torch.mm(_unit(reference[tops]), others)[row, column]
            found.append(pairs[_gaps(reference, pairs, rough, low) < 0])
            total += len(found[-1])
            if most is not None and total > most:
                raise ValueError(
                    f"More than {most:,} pairs of {count:,} images are blind at "
                    f"clip_threshold={high} and reference_threshold={low}; raise the "
                    "first, lower the second, or give fewer images."
                )
    pairs = torch.cat(found)
    return pairs[(pairs[:, 0] * count + pairs[:, 1]).argsort()], banks


def _unit(rows: Tensor) -> Tensor:
    """Scale rows to length 1, however long they are."""
    return F.normalize(rows / rows.abs().amax(1, keepdim=True))


def _rounding(features: Tensor) -> float:
    """Largest error of a product of rows that were scaled to length 1."""
    return 2 * (features.shape[1] + 4) * torch.finfo(features.dtype).eps


def _gaps(features: Tensor, pairs: Tensor, rough: Tensor, threshold: float) -> Tensor:
    """Cosines less a threshold; exact where rounding could change the sign."""
    gaps = rough - threshold
    near = gaps.abs() <= _rounding(features)
    exact = _cosines(features, pairs[near])
    gaps[near] = exact - exact.new_tensor(threshold)
    return gaps


def _cosines(features: Tensor, pairs: Tensor) -> Tensor:
    """Cosines of pairs ``(P, 2)``, rounded to the type of the features."""
    parts = []
    for block in pairs.split(_ROWS_PER_BLOCK):
        a, b = (features[side].double() for side in block.unbind(1))
        parts.append((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)))
    return torch.cat(parts).clamp(-1, 1).to(features.dtype)
