"""How checkpoints store the stock Avalanche plugins that we name.

Checked against avalanche-lib 0.6.0: ReplayPlugin and GDumbPlugin with
experience-balanced, class-balanced and reservoir buffers, AGEMPlugin, EWCPlugin,
SynapticIntelligencePlugin, FeatureDistillationPlugin, EarlyStoppingPlugin,
LRSchedulerPlugin and EvaluationPlugin. Replay, GDumb and A-GEM resume exactly
between experiences only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader
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
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)
from avalanche.training.utils import ParamData

from avalanche_clip.benchmarks.items.items import attribute_array, concatenate, item_fields
from avalanche_clip.training.templates.visits import find_step


def register_all(
    register: Callable[..., None],
    get_evaluator: Callable[[Any], dict[str, Any]],
    set_evaluator: Callable[[Any, dict[str, Any]], None],
) -> None:
    """Register the stock plugins."""
    register(ReplayPlugin, _get_replay, _set_later)
    register(GDumbPlugin, _get_gdumb, _set_later)
    register(AGEMPlugin, _get_agem, _set_later)
    register(FeatureDistillationPlugin, _get_distillation, _set_later)
    register(EWCPlugin, _get_ewc, _set_ewc)
    register(SynapticIntelligencePlugin, _get_synapses, _set_synapses)
    register(EarlyStoppingPlugin, _get_early, _set_early)
    register(LRSchedulerPlugin, _get_scheduler, _set_scheduler)
    register(EvaluationPlugin, get_evaluator, set_evaluator)


def exact_inside(strategy: Any) -> bool:
    """Whether a run can be resumed exactly inside the running experience.

    Loaders and memories of stock plugins draw from the global generators and
    cannot start in the middle.
    """
    from avalanche_clip.training.templates.order import TrainLoader

    memory = any(
        isinstance(p, GDumbPlugin) or (isinstance(p, AGEMPlugin) and p.buffers)
        for p in strategy.plugins
    )
    return isinstance(strategy.dataloader, TrainLoader) and not memory


# ------------------------------------------------------------------- replay
_POLICIES = (ExperienceBalancedBuffer, ClassBalancedBuffer, ReservoirSamplingBuffer)


def _get_replay(plugin: Any) -> dict[str, Any]:
    policy = plugin.storage_policy
    if type(policy) not in _POLICIES:
        raise TypeError(
            f"{type(plugin).__name__} uses a {type(policy).__name__}, whose state "
            "checkpoints do not know; use "
            f"{', '.join(k.__name__ for k in _POLICIES)} or BudgetedReplayPlugin."
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
    if isinstance(plugin, ReplayPlugin):
        _fill_policy(plugin.storage_policy, state, _Pool(strategy, benchmark))
    elif isinstance(plugin, GDumbPlugin):
        pool = _Pool(strategy, benchmark)
        _fill_policy(plugin.storage_policy, state["memory"], pool)
        plugin.init_model = _model_copy(strategy, state["init_model"])
    elif isinstance(plugin, FeatureDistillationPlugin):
        plugin.prev_model = _model_copy(strategy, state["prev_model"])
    elif isinstance(plugin, AGEMPlugin):
        _fill_agem(plugin, state, _Pool(strategy, benchmark))


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
            _load_agem(plugin)


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


def _without(dataset: Any, sample_ids: np.ndarray) -> tuple[Any, torch.Tensor]:
    """What is left of a memory without some samples, and where that was."""
    left = ~np.isin(_sample_ids(dataset).numpy(), sample_ids)
    rows = np.flatnonzero(left)
    if len(rows) == len(left):
        return dataset, torch.from_numpy(rows)
    return dataset.subset(rows.tolist()), torch.from_numpy(rows)


def _forget_in_policy(plugin: Any, sample_ids: np.ndarray) -> None:
    policy = plugin.storage_policy
    if type(policy) not in _POLICIES:
        raise ValueError(
            f"The step that is trained again may be in the {type(policy).__name__} of "
            f"{type(plugin).__name__}, from which it cannot be taken out; use "
            f"{', '.join(k.__name__ for k in _POLICIES)} or BudgetedReplayPlugin."
        )
    groups = getattr(policy, "buffer_groups", None)
    kept = {}
    for key, buffer in ({0: policy} if groups is None else groups).items():
        held = len(buffer.buffer)
        buffer.buffer, rows = _without(buffer.buffer, sample_ids)
        buffer._buffer_weights = buffer._buffer_weights[rows]
        if len(rows) or not held:
            kept[key] = buffer
    if isinstance(policy, ExperienceBalancedBuffer):
        policy._num_exps -= len(policy.buffer_groups) - len(kept)
        policy.buffer_groups = dict(enumerate(kept.values()))
    elif groups is not None:
        policy.buffer_groups = kept


def _get_gdumb(plugin: Any) -> dict[str, Any]:
    return {
        "memory": _get_replay(plugin),
        "init_model": _weights(plugin.init_model),
    }


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
    return {"buffers": [_sample_ids(b) for b in plugin.buffers]}


def _fill_agem(plugin: Any, state: dict[str, Any], pool: _Pool) -> None:
    plugin.buffers = [pool.subset(ids) for ids in state["buffers"]]
    _load_agem(plugin)


def _load_agem(plugin: Any) -> None:
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
    best = plugin.best_state
    return {
        "best_state": None if best is None else dict(best),
        "best_val": None if plugin.best_val is None else float(plugin.best_val),
        "best_step": plugin.best_step,
        "own_value": getattr(plugin, "own_value", None),
    }


def _set_early(plugin: Any, state: dict[str, Any]) -> None:
    plugin.best_state = state["best_state"]
    plugin.best_val = state["best_val"]
    plugin.best_step = state["best_step"]
    plugin.own_value = state.get("own_value")


# ---------------------------------------------------------------- scheduler
def _get_scheduler(plugin: Any) -> dict[str, Any]:
    plain = {
        k: v for k, v in plugin.scheduler.state_dict().items() if _is_plain_value(v)
    }
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


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain_value(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain_value(v) for v in value)
    return isinstance(value, (bool, int, float, str, type(None)))
