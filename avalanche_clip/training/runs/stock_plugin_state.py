"""How checkpoints store the stock Avalanche plugins that we name.

Checked against avalanche-lib 0.6.0. Replay, GDumb and A-GEM resume exactly between
experiences only.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metrics import Mean
from avalanche.training.plugins import (
    AGEMPlugin,
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    FeatureDistillationPlugin,
    GDumbPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.utils import ParamData

from avalanche_clip.benchmarks.items.items import attribute_array, concatenate
from avalanche_clip.common.plain import is_plain
from avalanche_clip.training.runs.metric_state import (
    evaluator_state,
    set_evaluator_state,
)
from avalanche_clip.training.templates.stock_memories import (
    POLICIES,
    load_agem,
    sample_ids,
)
from avalanche_clip.training.templates.visits import find_step


# ------------------------------------------------------------------- replay
def _get_replay(plugin: Any) -> dict[str, Any]:
    policy = plugin.storage_policy
    if type(policy) not in POLICIES:
        raise TypeError(
            f"{type(plugin).__name__} uses a {type(policy).__name__}, whose state "
            "checkpoints do not know; use "
            f"{', '.join(k.__name__ for k in POLICIES)} or BudgetedReplayPlugin."
        )
    groups = getattr(policy, "buffer_groups", None)
    buffers = {0: policy} if groups is None else groups
    return {
        "grouped": groups is not None,
        "max_size": policy.max_size,
        "num_experiences": getattr(policy, "_num_exps", None),
        "seen_classes": [int(c) for c in getattr(policy, "seen_classes", [])],
        "buffers": {
            int(key): {
                "sample_ids": sample_ids(buffer.buffer),
                "weights": buffer._buffer_weights.clone(),
                "max_size": int(buffer.max_size),
            }
            for key, buffer in buffers.items()
        },
    }


def _set_later(plugin: Any, state: dict[str, Any]) -> None:
    # Samples need the benchmark, copies the model: see restore_buffers.
    plugin._stored_state = state


def restore_buffers(plugin: Any, strategy: Any, benchmark: Any) -> None:
    """Rebuild memories from stored sample ids, and copies of the model.

    :raises ValueError: if a sample is in no step that was trained.
    """
    state = vars(plugin).pop("_stored_state", None)
    if state is None:
        return
    if isinstance(plugin, FeatureDistillationPlugin):
        plugin.prev_model = _model_copy(strategy, state["prev_model"])
        return
    pool = _Pool(strategy, benchmark)
    if isinstance(plugin, AGEMPlugin):
        plugin.buffers = [pool.subset(ids) for ids in state["buffers"]]
        load_agem(plugin)
        return
    _fill_policy(plugin.storage_policy, state, pool)
    if isinstance(plugin, GDumbPlugin):
        plugin.init_model = _model_copy(strategy, state["init_model"])


class _Pool:
    """Data that a run may have trained on, found by sample id.

    That of the training stream, and of other steps that were trained.
    """

    def __init__(self, strategy: Any, benchmark: Any):
        parts = [e.dataset for e in benchmark.streams.get("train", ())]
        for step in dict.fromkeys(strategy.visits.finished):
            if step.stream != "train":
                parts.append(find_step(benchmark, step).dataset)
        self.data = concatenate(parts)
        self.ids = attribute_array(self.data, "sample_id")
        self.order = np.argsort(self.ids, kind="stable")

    def subset(self, sample_ids: torch.Tensor) -> Any:
        wanted = sample_ids.cpu().numpy()
        at = np.searchsorted(self.ids[self.order], wanted)
        found = self.order[np.minimum(at, len(self.order) - 1)]
        if not (self.ids[found] == wanted).all():
            raise ValueError(
                "The replay buffer holds samples that are not in the benchmark; "
                "resume with the benchmark of the stored run."
            )
        return self.data.subset(found.tolist())


def _fill_policy(policy: Any, state: dict[str, Any], pool: _Pool) -> None:
    policy.max_size = state["max_size"]
    if state["num_experiences"] is not None:
        policy._num_exps = state["num_experiences"]
    if hasattr(policy, "seen_classes"):
        policy.seen_classes = set(state["seen_classes"])
    if state["grouped"]:
        policy.buffer_groups.clear()
    for key, stored in state["buffers"].items():
        buffer = ReservoirSamplingBuffer(stored["max_size"])
        if len(stored["sample_ids"]):
            buffer._buffer = pool.subset(stored["sample_ids"])
        buffer._buffer_weights = stored["weights"].cpu()
        if state["grouped"]:
            policy.buffer_groups[key] = buffer
        else:
            policy._buffer = buffer._buffer
            policy._buffer_weights = buffer._buffer_weights


def _get_gdumb(plugin: Any) -> dict[str, Any]:
    return {**_get_replay(plugin), "init_model": _weights(plugin.init_model)}


def _get_distillation(plugin: Any) -> dict[str, Any]:
    return {"prev_model": _weights(plugin.prev_model)}


def _weights(model: Any) -> dict[str, Any] | None:
    return None if model is None else model.state_dict()


def _model_copy(strategy: Any, weights: dict[str, Any] | None) -> Any:
    if weights is None:
        return None
    model = copy.deepcopy(strategy.model)
    model.load_state_dict(weights)
    return model


def _get_agem(plugin: Any) -> dict[str, Any]:
    return {"buffers": [sample_ids(b) for b in plugin.buffers]}


# ---------------------------------------------------------------------- EWC
def _get_ewc(plugin: Any) -> dict[str, Any]:
    return {
        field: {
            int(step): _plain_params(values)
            for step, values in getattr(plugin, field).items()
        }
        for field in ("saved_params", "importances")
    }


def _set_ewc(plugin: Any, state: dict[str, Any]) -> None:
    for field in ("saved_params", "importances"):
        stored = getattr(plugin, field)
        stored.clear()
        for step, values in state[field].items():
            stored[step] = _param_data(values)


# ------------------------------------------------------ synaptic intelligence
def _get_synapses(plugin: Any) -> dict[str, Any]:
    return {
        "ewc": [_plain_params(values) for values in plugin.ewc_data],
        "synapses": {k: _plain_params(v) for k, v in plugin.syn_data.items()},
    }


def _set_synapses(plugin: Any, state: dict[str, Any]) -> None:
    plugin.ewc_data = tuple(_param_data(values) for values in state["ewc"])
    plugin.syn_data = {k: _param_data(v) for k, v in state["synapses"].items()}


def _plain_params(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {k: v.data.detach().clone() for k, v in values.items()}


def _param_data(values: Mapping[str, torch.Tensor]) -> dict[str, ParamData]:
    return {
        k: ParamData(k, v.shape, init_tensor=v.clone(), device=v.device)
        for k, v in values.items()
    }


# ----------------------------------------------------------- early stopping
def _get_early(plugin: Any) -> dict[str, Any]:
    best, value = plugin.best_state, plugin.best_val
    return {
        "best_state": None if best is None else dict(best),
        "best_val": None if value is None else float(value),
        "best_step": plugin.best_step,
        "own_value": getattr(plugin, "own_value", None),
    }


def _set_attributes(plugin: Any, state: dict[str, Any]) -> None:
    vars(plugin).update(state)


# ---------------------------------------------------------------- scheduler
def _get_scheduler(plugin: Any) -> dict[str, Any]:
    plain = {k: v for k, v in plugin.scheduler.state_dict().items() if is_plain(v)}
    mean: Mean = plugin.rolling_metric
    # `_was_training` is not stored: before_training and after_training set it, and
    # a state between experiences is taken before after_training.
    return {
        "scheduler": plain,
        "mean": [float(mean.summed), float(mean.weight)],
        "flags": [plugin._just_validated, plugin._executed_train_iteration],
    }


def _set_scheduler(plugin: Any, state: dict[str, Any]) -> None:
    # Not load_state_dict: with functions left out it would not find them.
    plugin.scheduler.__dict__.update(copy.deepcopy(state["scheduler"]))
    plugin.rolling_metric.summed, plugin.rolling_metric.weight = state["mean"]
    plugin._just_validated, plugin._executed_train_iteration = state["flags"]


STATES: dict[type, tuple[Any, Any]] = {
    ReplayPlugin: (_get_replay, _set_later),
    GDumbPlugin: (_get_gdumb, _set_later),
    AGEMPlugin: (_get_agem, _set_later),
    FeatureDistillationPlugin: (_get_distillation, _set_later),
    EWCPlugin: (_get_ewc, _set_ewc),
    SynapticIntelligencePlugin: (_get_synapses, _set_synapses),
    EarlyStoppingPlugin: (_get_early, _set_attributes),
    LRSchedulerPlugin: (_get_scheduler, _set_scheduler),
    EvaluationPlugin: (evaluator_state, set_evaluator_state),
}
"""Class of a stock plugin -> how its state is read and put back."""
