"""Memories of stock Avalanche plugins, which know no visits and no resuming.

Checked against avalanche-lib 0.6.0: ReplayPlugin and GDumbPlugin with
experience-balanced, class-balanced and reservoir buffers, and AGEMPlugin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
from avalanche.training.plugins import AGEMPlugin, GDumbPlugin, ReplayPlugin
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)

from avalanche_clip.benchmarks.items.items import attribute_array, item_fields
from avalanche_clip.training.templates.order import TrainLoader

POLICIES = (ExperienceBalancedBuffer, ClassBalancedBuffer, ReservoirSamplingBuffer)


def exact_inside(strategy: Any) -> bool:
    """Whether a run can be resumed exactly inside the running experience.

    Loaders and memories of stock plugins draw from the global generators and
    cannot start in the middle.
    """
    memory = any(
        isinstance(p, GDumbPlugin) or (isinstance(p, AGEMPlugin) and p.buffers)
        for p in strategy.plugins
    )
    return isinstance(strategy.dataloader, TrainLoader) and not memory


def sample_ids(dataset: Any) -> torch.Tensor:
    """Ids of the samples of a data set, int64; an empty one needs none."""
    if len(dataset) == 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(attribute_array(dataset, "sample_id").astype(np.int64))


def forget_step(strategy: Any) -> None:
    """Take the running step out of stock memories when it comes again.

    Its samples are the new data then: none may be in a batch twice, nor count for
    two experiences.

    :raises ValueError: if a memory is of a kind that cannot be taken apart, or one
        that is balanced by class would get data without classes.
    """
    kinds = (ReplayPlugin, GDumbPlugin, AGEMPlugin)
    memories = [plugin for plugin in strategy.plugins if isinstance(plugin, kinds)]
    for plugin in memories:
        _require_classes(plugin, strategy.experience.dataset)
    if not memories or not strategy.visits.earlier_visits:
        return
    own = attribute_array(strategy.experience.dataset, "sample_id")
    for plugin in memories:
        if not isinstance(plugin, AGEMPlugin):
            _forget_in_policy(plugin, own)
        else:
            kept = [_without(b, own)[0] for b in plugin.buffers]
            plugin.buffers = [b for b in kept if len(b)]
            load_agem(plugin)


def _require_classes(plugin: Any, dataset: Any) -> None:
    """Refuse data without targets for a memory that is balanced by class."""
    policy = getattr(plugin, "storage_policy", None)
    if isinstance(policy, ClassBalancedBuffer) and "targets" not in item_fields(
        dataset
    ):
        raise ValueError(
            f"{type(plugin).__name__} keeps as many samples of each class, but the "
            "data have no targets. Give targets to make_image_text_dataset, or use "
            "BudgetedReplayPlugin."
        )


def _without(dataset: Any, gone: np.ndarray) -> tuple[Any, torch.Tensor]:
    """What is left of a memory without some samples, and where that was."""
    left = ~np.isin(sample_ids(dataset).numpy(), gone)
    rows = np.flatnonzero(left)
    if len(rows) == len(left):
        return dataset, torch.from_numpy(rows)
    return dataset.subset(rows.tolist()), torch.from_numpy(rows)


def _forget_in_policy(plugin: Any, gone: np.ndarray) -> None:
    policy = plugin.storage_policy
    if type(policy) not in POLICIES:
        raise ValueError(
            f"The step that is trained again may be in the {type(policy).__name__} of "
            f"{type(plugin).__name__}, from which it cannot be taken out; use "
            f"{', '.join(k.__name__ for k in POLICIES)} or BudgetedReplayPlugin."
        )
    groups = getattr(policy, "buffer_groups", None)
    kept = {}
    for key, buffer in ({0: policy} if groups is None else groups).items():
        held = len(buffer.buffer)
        buffer.buffer, rows = _without(buffer.buffer, gone)
        buffer._buffer_weights = buffer._buffer_weights[rows]
        if len(rows) or not held:
            kept[key] = buffer
    if isinstance(policy, ExperienceBalancedBuffer):
        policy._num_exps -= len(policy.buffer_groups) - len(kept)
        policy.buffer_groups = dict(enumerate(kept.values()))
    elif groups is not None:
        policy.buffer_groups = kept


def load_agem(plugin: Any) -> None:
    """Make the loader over the buffers of an AGEMPlugin anew."""
    if not plugin.buffers:
        return
    # What is drawn does not depend on the number of workers.
    plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(
        plugin.buffers,
        batch_size=plugin.sample_size // len(plugin.buffers),
        num_workers=0,
        pin_memory=False,
        persistent_workers=False,
    )
    plugin.buffer_dliter = iter(plugin.buffer_dataloader)
