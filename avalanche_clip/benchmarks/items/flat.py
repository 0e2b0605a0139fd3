"""Walk the trees of data inside Avalanche's data sets.

An ``AvalancheDataset`` of Avalanche 0.6.0 is a tree of ``FlatData``: subsets and
concatenations, some with transforms, over the sources that items are read from.
This is the one place that knows it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data import _FlatDataWithTransform
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.transform_groups import EmptyTransformGroups
from avalanche.benchmarks.utils.transforms import (
    MultiParamCompose,
    MultiParamTransformCallable,
    TupleTransform,
)
from torch import Tensor

from avalanche_clip.benchmarks.items.items import CheckedPairs
from avalanche_clip.benchmarks.items.streamed import StreamedItems


def nodes(tree: Any) -> Iterator[Any]:
    """Yield the parts of a tree of data, from the top, sources included."""
    yield tree
    if isinstance(tree, FlatData):
        for part in tree._datasets:
            yield from nodes(part)


def raw_items(dataset: AvalancheDataset) -> list[Any]:
    """Return the distinct sources that items of a data set are read from."""
    found = [n for n in nodes(dataset._flat_data) if not isinstance(n, FlatData)]
    return list({id(source): source for source in found}.values())


def locate(dataset: AvalancheDataset, position: int) -> tuple[Any, int]:
    """Find the source of a sample and its position there."""
    node: Any = dataset._flat_data
    while isinstance(node, FlatData):
        part, position = node._get_idx(position)
        node = node._datasets[part]
    return node, position


def raw_item(dataset: AvalancheDataset, position: int) -> Any:
    """Read an item as its source gives it, before any transform."""
    source, place = locate(dataset, position)
    return source[place]


def raw_text(dataset: AvalancheDataset, position: int) -> Any:
    """Read the text of a sample without its picture, where the source can.

    Of all transforms only frozen ones of texts are applied: these belong to the data.
    """
    frozen: list[Any] = []
    node: Any = dataset._flat_data
    while isinstance(node, FlatData):
        if isinstance(node, _FlatDataWithTransform):
            frozen[:0] = _side(node._frozen_transform_groups["train"], 1)
        part, position = node._get_idx(position)
        node = node._datasets[part]
    checked = isinstance(node, CheckedPairs)
    text = node.text(position) if checked else node[position][1]
    for transform in frozen:
        text = transform(text)
    return text


# ------------------------------------------------------------------- rebuilding
def without_groups(tree: Any) -> Any:
    """Return a tree of data without its transform groups; frozen ones stay.

    Avalanche 0.6.0's ``remove_current_transform_group`` drops only the group
    in use: a data set prepared twice would transform twice in the other one.
    Trees have groups at any level, since subsets wrap what they are taken from.
    """
    bare = copy.copy(tree)
    bare._transform_groups = EmptyTransformGroups()
    bare._transform_groups.current_group = "train"
    bare._datasets = [
        without_groups(part) if isinstance(part, _FlatDataWithTransform) else part
        for part in tree._datasets
    ]
    return bare


class TextsOnly(CheckedPairs):
    """Raw items without their picture, which is then never decoded.

    In place of the picture stands an empty float tensor, so that a batch holds an
    image tensor ``(B, 0)``.
    """

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.empty(0), self.text(index)


def texts_only(dataset: AvalancheDataset) -> AvalancheDataset:
    """Return a data set whose items have no picture, where the source allows it."""
    # By identity: Avalanche merges parts that share their source.
    known: dict[int, Any] = {}

    def rebuilt(tree: Any) -> Any:
        if isinstance(tree, FlatData):
            changed = copy.copy(tree)
            changed._datasets = [rebuilt(part) for part in tree._datasets]
            return changed
        if not isinstance(tree, CheckedPairs) or isinstance(tree, TextsOnly):
            return tree
        if id(tree) not in known:
            kept = TextsOnly(tree.pairs, tree.sample_ids, tree.empty_captions)
            known[id(tree)] = kept
        return known[id(tree)]

    changed = copy.copy(dataset)
    changed._flat_data = rebuilt(dataset._flat_data)
    return changed


def has_no_images(dataset: AvalancheDataset) -> bool:
    """Tell whether all items of a data set have an empty tensor for a picture."""
    found = raw_items(dataset)
    return bool(found) and all(isinstance(source, TextsOnly) for source in found)


# ------------------------------------------------------------------- transforms
def image_transforms(dataset: AvalancheDataset, group: str) -> Iterator[Any]:
    """Yield what a group of transforms of a data set does to images.

    :param group: ``"train"`` or ``"eval"``.
    """
    for node in nodes(dataset._flat_data):
        if isinstance(node, _FlatDataWithTransform):
            for groups in (node._transform_groups, node._frozen_transform_groups):
                yield from _side(groups[group], 0)


def _side(transform: Any, place: int) -> Iterator[Any]:
    """What a transform of whole items does to images (place 0) or texts (1)."""
    if isinstance(transform, MultiParamCompose):
        for part in transform.transforms:
            yield from _side(part, place)
    elif isinstance(transform, TupleTransform):
        chosen = transform.transforms[place : place + 1]
        yield from (t for t in chosen if t is not None)
    elif place == 0 and isinstance(transform, MultiParamTransformCallable):
        yield transform.transform
    elif place == 0 and callable(transform):
        yield transform


def has_deterministic_images(dataset: AvalancheDataset, group: str = "train") -> bool:
    """Tell whether a data set always gives the same image tensors.

    True if every image transform of the group says ``deterministic=True``; data
    without any, and streams, are not known to be.
    """
    if isinstance(dataset, StreamedItems):
        return False
    found = list(image_transforms(dataset, group))
    # A transform is the user's own and need not have the attribute.
    return bool(found) and all(getattr(t, "deterministic", False) for t in found)
