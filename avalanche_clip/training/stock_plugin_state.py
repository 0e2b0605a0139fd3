"""How checkpoints store the stock Avalanche plugins that we name.

Checked against avalanche-lib 0.6.0: ReplayPlugin with experience-balanced,
class-balanced and reservoir buffers, EWCPlugin, EarlyStoppingPlugin,
LRSchedulerPlugin and EvaluationPlugin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metrics import Mean
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
)
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.utils import ParamData

from avalanche_clip.benchmarks.data import attribute_array, concatenate


def register_all(
    register: Callable[..., None],
    get_evaluator: Callable[[Any], dict[str, Any]],
    set_evaluator: Callable[[Any, dict[str, Any]], None],
) -> None:
    """Register the stock plugins."""
    register(ReplayPlugin, _get_replay, _set_replay)
    register(EWCPlugin, _get_ewc, _set_ewc)
    register(EarlyStoppingPlugin, _get_early, _set_early)
    register(LRSchedulerPlugin, _get_scheduler, _set_scheduler)
    register(EvaluationPlugin, get_evaluator, set_evaluator)


# ------------------------------------------------------------------- replay
def _get_replay(plugin: Any) -> dict[str, Any]:
    policy = plugin.storage_policy
    groups = getattr(policy, "buffer_groups", None)
    buffers = {0: policy} if groups is None else groups
    return {
        "grouped": groups is not None,
        "max_size": policy.max_size,
        "num_experiences": getattr(policy, "_num_exps", None),
        "seen_classes": sorted(getattr(policy, "seen_classes", [])),
        "buffers": {
            int(key): {
                "sample_ids": _sample_ids(buffer.buffer),
                "weights": buffer._buffer_weights.clone(),
                "max_size": int(buffer.max_size),
            }
            for key, buffer in buffers.items()
        },
    }


def _sample_ids(dataset: Any) -> torch.Tensor:
    if len(dataset) == 0:
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(attribute_array(dataset, "sample_id").astype(np.int64))


def _set_replay(plugin: Any, state: dict[str, Any]) -> None:
    # The samples themselves need the benchmark: see restore_replay.
    plugin._stored_buffers = state


def restore_replay(plugin: Any, benchmark: Any) -> None:
    """Rebuild the buffers of a ReplayPlugin from stored sample ids.

    :raises ValueError: if a sample is not in the benchmark's training stream.
    """
    state = vars(plugin).pop("_stored_buffers", None)
    if state is None:
        return
    policy = plugin.storage_policy
    datasets = [e.dataset for e in benchmark.streams["train"]]
    pool = concatenate(datasets)
    ids = attribute_array(pool, "sample_id")
    order = np.argsort(ids, kind="stable")
    policy.max_size = state["max_size"]
    if state["num_experiences"] is not None:
        policy._num_exps = state["num_experiences"]
    if hasattr(policy, "seen_classes"):
        policy.seen_classes = set(state["seen_classes"])
    for key, stored in state["buffers"].items():
        buffer = ReservoirSamplingBuffer(stored["max_size"])
        wanted = stored["sample_ids"].numpy()
        if len(wanted):
            at = np.searchsorted(ids[order], wanted)
            found = order[np.minimum(at, len(order) - 1)]
            if not (ids[found] == wanted).all():
                raise ValueError(
                    "The replay buffer holds samples that are not in the benchmark; "
                    "resume with the benchmark of the stored run."
                )
            buffer._buffer = pool.subset(found.tolist())
        buffer._buffer_weights = stored["weights"]
        if state["grouped"]:
            policy.buffer_groups[key] = buffer
        else:
            policy._buffer = buffer._buffer
            policy._buffer_weights = buffer._buffer_weights


# ---------------------------------------------------------------------- EWC
def _get_ewc(plugin: Any) -> dict[str, Any]:
    return {
        field: {
            int(step): {k: v.data.detach().clone() for k, v in values.items()}
            for step, values in getattr(plugin, field).items()
        }
        for field in ("saved_params", "importances")
    }


def _set_ewc(plugin: Any, state: dict[str, Any]) -> None:
    for field in ("saved_params", "importances"):
        stored = getattr(plugin, field)
        stored.clear()
        for step, values in state[field].items():
            stored[step] = {
                k: ParamData(k, v.shape, init_tensor=v, device=v.device)
                for k, v in values.items()
            }


# ----------------------------------------------------------- early stopping
def _get_early(plugin: Any) -> dict[str, Any]:
    best = plugin.best_state
    return {
        "best_state": None if best is None else dict(best),
        "best_val": None if plugin.best_val is None else float(plugin.best_val),
        "best_step": plugin.best_step,
    }


def _set_early(plugin: Any, state: dict[str, Any]) -> None:
    plugin.best_state = state["best_state"]
    plugin.best_val = state["best_val"]
    plugin.best_step = state["best_step"]


# ---------------------------------------------------------------- scheduler
def _get_scheduler(plugin: Any) -> dict[str, Any]:
    plain = {
        k: v for k, v in plugin.scheduler.state_dict().items() if _is_plain_value(v)
    }
    mean: Mean = plugin.rolling_metric
    return {
        "scheduler": plain,
        "mean": [float(mean.summed), float(mean.weight)],
        "flags": [
            plugin._was_training,
            plugin._just_validated,
            plugin._executed_train_iteration,
        ],
    }


def _set_scheduler(plugin: Any, state: dict[str, Any]) -> None:
    plugin.scheduler.__dict__.update(state["scheduler"])
    plugin.rolling_metric.summed, plugin.rolling_metric.weight = state["mean"]
    (
        plugin._was_training,
        plugin._just_validated,
        plugin._executed_train_iteration,
    ) = state["flags"]


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain_value(v) for v in value)
    return isinstance(value, (bool, int, float, str, type(None)))


__all__ = ["register_all", "restore_replay"]
