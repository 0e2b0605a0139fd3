"""Pairs of images that look the same to CLIP and different to another encoder."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_finite, as_size, require_alike
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_float_matrix
from avalanche_clip.evaluation.functional.ranks import full_products

MOST_LISTED = 2_000_000
"""Most pairs that :func:`clip_blind_pairs` lists, some 400 MB."""

_PAIRS_PER_BLOCK = 4096
# With more candidates in a tile a product of the reference features is cheaper
# than gathering their rows.
_DENSE = 1 / 64


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
    banks = Banks(clip_features, reference_features)
    pairs = banks.blind(clip_threshold, reference_threshold, chunk_size, MOST_LISTED)
    clip, reference = (bank.cosines(pairs) for bank in (banks.clip, banks.reference))
    if duplicate_threshold is not None:
        limit = as_finite(duplicate_threshold, "duplicate_threshold", low=-1, high=1)
        if limit >= reference_threshold:
            raise ValueError(
                f"duplicate_threshold={limit} has no effect, since blind pairs are "
                f"below reference_threshold={reference_threshold}; leave it out."
            )
        kept = (clip <= limit) | (reference <= limit)
        pairs, clip, reference = pairs[kept], clip[kept], reference[kept]
    # Pairs come sorted by number, and the sort is stable.
    order = (clip - reference).sort(descending=True, stable=True).indices
    columns = (column[order].tolist() for column in (*pairs.T, clip, reference))
    found = [BlindPair(*row) for row in zip(*columns, strict=True)]
    return found if most is None else _capped(found, most)


def _capped(pairs: list[BlindPair], most: int) -> list[BlindPair]:
    used: Counter[int] = Counter()
    kept = []
    for pair in pairs:
        if used[pair.first] < most and used[pair.second] < most:
            used.update((pair.first, pair.second))
            kept.append(pair)
    return kept


class Banks:
    """The features of N images to CLIP and to a reference encoder, checked.

    :param clip_features: see :func:`clip_blind_pairs`.
    :param reference_features: as many rows.
    """

    def __init__(self, clip_features: ArrayLike, reference_features: ArrayLike):
        clip = as_float_matrix("clip_features", clip_features)
        reference = as_float_matrix("reference_features", reference_features)
        if len(clip) != len(reference):
            raise ValueError(
                f"clip_features of shape {tuple(clip.shape)} and reference_features of "
                f"shape {tuple(reference.shape)} given; give one row of each per image."
            )
        require_alike(
            "move one of them",
            ("device",),
            clip_features=clip,
            reference_features=reference,
        )
        self.clip = _Bank("clip_features", clip)
        self.reference = _Bank("reference_features", reference)

    @torch.no_grad()
    def blind(
        self,
        clip_threshold: float,
        reference_threshold: float,
        chunk_size: int = 1024,
        most: int | None = None,
    ) -> Tensor:
        """Return the blind pairs, int64 ``(P, 2)``, sorted; see the function.

        :param most: largest number of pairs; more raise ValueError.
        """
        high = as_finite(clip_threshold, "clip_threshold", low=-1, high=1)
        low = as_finite(reference_threshold, "reference_threshold", low=-1, high=1)
        side = as_size(chunk_size, "chunk_size")
        rows = self.clip.units()
        count, memory = len(rows), rows.new_empty(min(side, len(rows)) ** 2)
        found, total = [], 0
        # autocast would lower the precision of the products
        off = torch.autocast(device_type=rows.device.type, enabled=False)
        with off, full_products():
            for top in range(0, count, side):
                for left in range(top, count, side):
                    above, beside = rows[top : top + side], rows[left : left + side]
                    shape = (len(above), len(beside))
                    tile = memory[: shape[0] * shape[1]].view(shape)
                    torch.mm(above, beside.T, out=tile)
                    pairs = self._candidates(tile, top, left, high)
                    pairs = self._told_apart(pairs, tile.numel(), low)
                    total += len(pairs)
                    if most is not None and total > most:
                        raise ValueError(
                            f"More than {most:,} pairs of {count:,} images are blind "
                            f"at clip_threshold={high} and reference_threshold={low}; "
                            "raise the first, lower the second, or give fewer images."
                        )
                    found.append(pairs)
        pairs = torch.cat(found)
        return pairs[(pairs[:, 0] * count + pairs[:, 1]).argsort()]

    def _candidates(self, tile: Tensor, top: int, left: int, high: float) -> Tensor:
        """Pairs of a tile above the threshold of CLIP, ``(P, 2)``."""
        margin = self.clip.margin
        if tile.max() <= high - margin:  # the mask of a tile costs more than its top
            return torch.empty(0, 2, dtype=torch.int64, device=tile.device)
        mask = tile > high - margin
        places = (mask.triu(1) if top == left else mask).nonzero()
        near = tile[places.unbind(1)] <= high + margin
        places += places.new_tensor([top, left])
        exact = self.clip.cosines(places[near])
        near[near.clone()] = exact <= exact.new_tensor(high)
        return places[~near]

    def _told_apart(self, pairs: Tensor, size: int, low: float) -> Tensor:
        """Those of some pairs that are below the threshold of the reference."""
        margin = self.reference.margin
        if len(pairs) > size * _DENSE:
            # Rows of the pairs' images only, those of a tile.
            (tops, row), (lefts, column) = (
                part.unique(return_inverse=True) for part in pairs.unbind(1)
            )
            above, beside = self.reference.units(tops), self.reference.units(lefts)
            cosines = (above @ beside.T)[row, column]
            pairs, cosines = (x[cosines < low + margin] for x in (pairs, cosines))
            near = cosines >= low - margin
        else:
            near = torch.ones(len(pairs), dtype=torch.bool, device=pairs.device)
        exact = self.reference.cosines(pairs[near])
        near[near.clone()] = exact >= exact.new_tensor(low)
        return pairs[~near]


class _Bank:
    """Features of one encoder and their lengths."""

    def __init__(self, name: str, features: Tensor):
        self.features = features
        # Blocks, since a copy in float64 would be as large as both banks.
        self.norms = torch.cat(
            [rows.double().norm(dim=1) for rows in features.split(_PAIRS_PER_BLOCK)]
        )
        # Rounding of an inner product of unit vectors, with those of the vectors.
        self.margin = 2 * (features.shape[1] + 4) * torch.finfo(features.dtype).eps
        if not self.norms.all():
            row = int((self.norms == 0).nonzero()[0])
            raise ValueError(
                f"{name} of shape {tuple(features.shape)} has zeros only in row {row}, "
                "which has no direction; leave the image out."
            )

    def units(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return rows of length 1 in the type of the features."""
        blocks = zip(
            self.features[index].split(_PAIRS_PER_BLOCK),
            self.norms[index, None].split(_PAIRS_PER_BLOCK),
            strict=True,
        )
        kind = self.features.dtype
        return torch.cat([(rows / norms).to(kind) for rows, norms in blocks])

    def cosines(self, pairs: Tensor) -> Tensor:
        """Return the cosines of pairs ``(P, 2)``, rounded to the features' type."""
        parts = [
            (self.features[a].double() * self.features[b].double()).sum(1)
            / (self.norms[a] * self.norms[b])
            for a, b in (block.unbind(1) for block in pairs.split(_PAIRS_PER_BLOCK))
        ]
        return torch.cat(parts).to(self.features.dtype)
