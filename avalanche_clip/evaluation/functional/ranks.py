"""Exact retrieval ranks without the full score matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_clip.common.checks import (
    as_finite,
    as_size,
    require_alike,
    require_array,
    require_choice,
    require_indices,
)
from avalanche_clip.common.progress import progress
from avalanche_clip.evaluation.functional._inputs import (
    ArrayLike,
    as_float_matrix,
    as_tensor,
)

TIES = ("pessimistic", "strict", "expected")

_PAIRS_PER_BLOCK = 2048
# Scores compared at once: this block and its mask of the same size stay in the
# caches of common processors, which halves the time of the comparisons.
_SCORES_PER_BLOCK = 1 << 19


class RetrievalRanks(NamedTuple):
    """Ranks and ties of all queries of both directions.

    ``image_to_text``: rank of the best own text of each image, float64,
    ``(N,)``, 0 = found first. ``text_to_image``: rank of the best own image of
    each text, float64, ``(M,)``. The two ``..._tied`` fields are bool and mark
    the queries with a foreign item within ``tie_eps`` of their own score.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    image_to_text_tied: Tensor
    text_to_image_tied: Tensor


def retrieval_ranks(
    image_features: ArrayLike,
    text_features: ArrayLike,
    owner: ArrayLike | None = None,
    *,
    ties: str = "pessimistic",
    tie_eps: float = 1e-6,
    chunk_size: int = 1024,
) -> RetrievalRanks:
    """Rank the own items of all images and all texts, one tile at a time.

    The score of a pair is the inner product of its features, which are taken
    as given: normalise them first to compare cosines. A query's own score is
    the highest one over the items that belong to it. All own pairs are removed
    from a tile before anything is counted, so only foreign items can come
    before the own one and rounding cannot make an item beat itself.

    Memory beyond the inputs is one tile of ``chunk_size ** 2`` scores plus a few
    numbers per item and pair.

    :param image_features: ``(N, D)``, float32 or float64.
    :param text_features: ``(M, D)``, same type and device.
    :param owner: which image each text belongs to: integers ``(M,)``; or pairs
        (text, image), integers ``(P, 2)``, where texts may belong to several
        images. None: text i belongs to image i.
    :param ties: ``"pessimistic"`` counts foreign items with a score of at least
        own - ``tie_eps``, ``"strict"`` those with a score above the own one,
        ``"expected"`` is the mean of both ranks.
    :param tie_eps: largest difference that counts as a tie, >= 0. Unless it is
        0, differences within rounding (8 units in the last place of the largest
        product of norms) are ties too, which matters for long features only.
    :param chunk_size: side of a tile, >= 1.
    :return: ranks and tie flags on the device of the features.
    :raises ValueError: if shapes, types or options do not fit, a value is not
        finite, or an image or a text has no partner.

    >>> images = torch.eye(3)
    >>> texts = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.1, 0.2, 0.6]])
    >>> retrieval_ranks(images, texts).text_to_image.tolist()
    [0.0, 1.0, 0.0]
    """
    require_choice("ties", ties, TIES)
    as_finite(tie_eps, "tie_eps", low=0)
    chunk_size = as_size(chunk_size, "chunk_size")
    images = as_float_matrix("image_features", image_features)
    texts = as_float_matrix("text_features", text_features)
    require_alike(
        "give features of one model, of one type, on one device",
        ("columns", "dtype", "device"),
        image_features=images,
        text_features=texts,
    )
    pairs = owner_pairs(owner, images.shape[0], texts.shape[0]).to(images.device)
    # autocast would lower the precision of the products
    autocast_off = torch.autocast(device_type=images.device.type, enabled=False)
    with torch.no_grad(), autocast_off, full_products():
        return _rank_tiles(images, texts, pairs, ties, tie_eps, chunk_size)


def owner_pairs(owner: ArrayLike | None, num_images: int, num_texts: int) -> Tensor:
    """Return the distinct (text, image) pairs that belong together.

    :param owner: None, integers ``(M,)`` or pairs ``(P, 2)``, as
        :func:`retrieval_ranks` takes it.
    :param num_images: N.
    :param num_texts: M.
    :return: int64 tensor ``(P, 2)``, sorted by text, then image.
    :raises ValueError: if the shape, type or range is wrong, or an image or a
        text occurs in no pair.
    """
    sizes = f"{num_images} images and {num_texts} texts"
    if owner is None:
        if num_images != num_texts:
            raise ValueError(
                f"{sizes} given without owner; pass the image of each text as "
                f"owner, shape ({num_texts},)."
            )
        return torch.arange(num_images)[:, None].expand(-1, 2)
    given = as_tensor("owner", owner)
    is_vector = given.shape == (num_texts,)
    wanted = f"the image of each text, or (text, image) pairs (P, 2), for {sizes}"
    shape = f"{num_texts}" if is_vector or given.ndim == 1 else "* 2"
    require_array(given, "owner", shape, "integer", give=wanted)
    if is_vector:
        texts = torch.arange(num_texts, device=given.device)
        pairs = torch.stack([texts, given.long()], dim=1)
    else:
        pairs = torch.unique(given.long(), dim=0)
    _check_partners("text", pairs[:, 0], num_texts)
    _check_partners("image", pairs[:, 1], num_images)
    return pairs


def _check_partners(kind: str, indices: Tensor, size: int) -> None:
    require_indices(indices, size, f"owner, by {kind},")
    missing = torch.bincount(indices, minlength=size) == 0
    if missing.any():
        raise ValueError(
            f"{int(missing.sum())} of {size} {kind}s have no partner in owner, the "
            f"first is {kind} {int(missing.nonzero()[0])}; leave them out or add "
            "their pairs."
        )


@contextmanager
def full_products() -> Iterator[None]:
    """Switch off TF32 and bfloat16 products, which are coarser than ``tie_eps``.

    Own scores do not come from a matrix product, so that with such products a
    collapsed encoder could be right.
    """
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch < 2.9
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    mkldnn: Any = torch.backends.mkldnn
    backends: list[Any] = [torch.backends.cuda.matmul, mkldnn.matmul]
    kinds = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, kind in zip(backends, kinds, strict=True):
            backend.fp32_precision = kind


def _own_scores(images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best own score of each image and of each text."""
    best_image = images.new_full((images.shape[0],), -torch.inf)
    best_text = texts.new_full((texts.shape[0],), -torch.inf)
    for block in pairs.split(_PAIRS_PER_BLOCK):
        text_index, image_index = block.unbind(dim=1)
        scores = (texts[text_index] * images[image_index]).sum(dim=1)
        best_text.scatter_reduce_(0, text_index, scores, "amax")
        best_image.scatter_reduce_(0, image_index, scores, "amax")
    return best_image, best_text


def _tolerance(queries: Tensor, items: Tensor, tie_eps: float) -> Tensor:
    """Largest difference that counts as a tie, for each query.

    Equal scores that are computed in two ways differ by rounding, which grows
    with the length of the features; unit vectors stay below ``tie_eps``.
    """
    if not tie_eps:
        return queries.new_zeros(len(queries))
    longest = items.norm(dim=1).max() if len(items) else 0.0
    rounding = 8 * torch.finfo(queries.dtype).eps
    tolerance = (rounding * longest * queries.norm(dim=1)).clamp(min=tie_eps)
    # Norms of huge features overflow.
    return torch.where(tolerance.isfinite(), tolerance, tie_eps)


class _Counter:
    """Counts, per query, the foreign scores above each threshold.

    The comparisons write zeros and ones of the type of the scores into one
    buffer: both the comparison and the sum then run vectorised, several times
    faster than on bool, and the sums of a block stay exact (below 2 ** 24).
    """

    def __init__(self, own: Tensor, tolerance: Tensor, ties: str) -> None:
        self.comparisons = [(torch.ge, own - tolerance), (torch.gt, own + tolerance)]
        if ties != "pessimistic":
            self.comparisons.append((torch.gt, own))
        size = (len(self.comparisons), own.shape[0])
        # float64 holds integers exactly and adds the block sums without a copy
        self.counts = torch.zeros(size, dtype=torch.float64, device=own.device)

    def add(
        self, block: Tensor, mask: Tensor, part: slice, dim: int, *, keep: bool
    ) -> None:
        """Count along ``dim`` of the block for the queries in ``part``.

        The masks are written to ``mask``; the last one, unless the scores are
        to be kept, over the block itself, which takes half the time.
        """
        for number, (compare, bound) in enumerate(self.comparisons):
            last = number == len(self.comparisons) - 1
            out = block if last and not keep else mask
            compare(block, bound[part].unsqueeze(dim), out=out)
            self.counts[number, part] += out.sum(dim)

    def ranks(self, ties: str) -> Tensor:
        """Return the ranks under the given tie policy."""
        if ties == "pessimistic":
            return self.counts[0].clone()
        if ties == "strict":
            return self.counts[2].clone()
        return (self.counts[0] + self.counts[2]) / 2

    def tied(self) -> Tensor:
        """Mark the queries with a foreign score within the tolerance."""
        return self.counts[0] > self.counts[1]


def _own_by_tile(pairs: Tensor, num_images: int, chunk_size: int) -> dict[int, Tensor]:
    """Number of a tile -> rows and columns of the own pairs in it, ``(P', 2)``."""
    tile = pairs // chunk_size
    keys = tile[:, 0] * -(-num_images // chunk_size) + tile[:, 1]
    keys, order = keys.sort(stable=True)
    present, sizes = torch.unique_consecutive(keys, return_counts=True)
    parts = (pairs[order] % chunk_size).split(sizes.tolist())
    return dict(zip(present.tolist(), parts, strict=True))


def _rank_tiles(
    images: Tensor,
    texts: Tensor,
    pairs: Tensor,
    ties: str,
    tie_eps: float,
    chunk_size: int,
) -> RetrievalRanks:
    num_images, num_texts = images.shape[0], texts.shape[0]
    best_image, best_text = _own_scores(images, texts, pairs)
    image_counter = _Counter(best_image, _tolerance(images, texts, tie_eps), ties)
    text_counter = _Counter(best_text, _tolerance(texts, images, tie_eps), ties)
    own = _own_by_tile(pairs, num_images, chunk_size)
    width = min(chunk_size, num_images)
    height = max(1, _SCORES_PER_BLOCK // width)
    scores_memory = texts.new_empty(min(chunk_size, num_texts) * width)
    mask_memory = texts.new_empty(min(height, chunk_size, num_texts) * width)
    key = 0
    for top in progress(range(0, num_texts, chunk_size), "ranking", unit="block"):
        rows = slice(top, min(top + chunk_size, num_texts))
        for left in range(0, num_images, chunk_size):
            columns = slice(left, min(left + chunk_size, num_images))
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            tile = scores_memory[: shape[0] * shape[1]].view(shape)
            torch.mm(texts[rows], images[columns].T, out=tile)
            if key in own:
                tile[own[key].unbind(dim=1)] = -torch.inf
            for start, block in zip(
                range(top, rows.stop, height), tile.split(height), strict=True
            ):
                mask = mask_memory[: block.numel()].view(block.shape)
                part = slice(start, start + block.shape[0])
                text_counter.add(block, mask, part, dim=1, keep=True)
                image_counter.add(block, mask, columns, dim=0, keep=False)
            key += 1
    return RetrievalRanks(
        image_counter.ranks(ties),
        text_counter.ranks(ties),
        image_counter.tied(),
        text_counter.tied(),
    )
