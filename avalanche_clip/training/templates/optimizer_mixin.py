"""The optimiser side of the CLIP templates: groups that follow the model."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.utils import _at_task_boundary
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.common.checks import did_you_mean
from avalanche_clip.common.grown import fit_moment
from avalanche_clip.training.templates import optim


class OptimizerMixin:
    """Build, rebuild, store and restore the optimiser by parameter name."""

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    contracts: Any
    experience: Any
    is_training: bool
    reset_optimizer_state: bool
    _group_rule: optim.GroupRule | None
    _ddp: nn.Module | None
    _ddp_ids: frozenset[int]
    _pending: Any
    _built: list[dict[str, Any]]
    # For strategies with values of their own: the optimiser where the user gives
    # none, and its groups where the user gives no rule either.
    _default_optimizer: Callable[..., Optimizer] = staticmethod(optim.default_optimizer)
    _default_groups: optim.GroupRule | None = None

    def _build_optimizer(self, model: nn.Module, optimizer: Any) -> Optimizer:
        named = optim.trainable(model)
        if isinstance(optimizer, Optimizer):
            if self._group_rule is not None:
                self._regroup(optimizer, named)
            return optimizer
        if optimizer is not None and not callable(optimizer):
            raise TypeError(
                f"optimizer is a {type(optimizer).__name__}; give an Optimizer, a "
                "callable that takes parameter groups, or None."
            )
        if optimizer is None:
            optimizer = self._default_optimizer
            self._group_rule = self._group_rule or self._default_groups
        groups = optim.assign_names(self._group_rule, named)
        return optimizer(
            [
                {
                    "params": [named[n] for n in g["names"]],
                    **{k: v for k, v in g.items() if k != "names"},
                }
                for g in groups
            ]
        )

    def _regroup(self, optimizer: Optimizer, named: dict[str, nn.Parameter]) -> None:
        """Arrange a user's optimiser as the user's rule says."""
        groups = optim.assign_names(self._group_rule, named)
        names = {id(p): n for n, p in named.items()}
        optim.rebuild(optimizer, groups, named, names, reset_state=False)
        for group, rule in zip(optimizer.param_groups, groups):
            group.update((k, v) for k, v in rule.items() if k != "names")

    def _remember_optimizer(self, model: nn.Module) -> None:
        named = optim.trainable(model)
        self._groups = optim.group_names(self.optimizer, named)
        held = {n for g in self._groups for n in g["names"]}
        if not held:
            raise ValueError(
                "The optimizer holds no trainable parameter of the model; build it "
                "from this model's parameters, or pass a callable."
            )
        self._left_out = set(named) - held
        self._known = set(named)  # every name that was ever trainable
        self._optimizer_names = {id(p): n for n, p in named.items()}
        for place, group in enumerate(self.optimizer.param_groups):
            # What options are stored and found by, from the first checkpoint on.
            group["owner"] = f"rule {place}"
        found = optim.describe_groups(self.optimizer, self._groups)
        self._built = copy.deepcopy(found)
        for group, names in zip(self.optimizer.param_groups, self._groups):
            group.setdefault("initial_lr", float(group["lr"]))
            # Frozen parameters of a user's optimiser leave it at once.
            group["params"] = [named[n] for n in names["names"]]

    def make_optimizer(
        self, reset_optimizer_state: bool = False, **kwargs: Any
    ) -> None:
        """Rebuild the optimiser's groups for the model as it is now."""
        named = optim.trainable(self.model)
        if self._group_rule is not None:
            groups = optim.assign_names(self._group_rule, named)
        else:
            groups = self._extend_groups(named)
        self._groups = groups
        groups = [{**g, "owner": f"rule {i}"} for i, g in enumerate(groups)]
        numbers: Counter[str] = Counter()
        for contract in self.contracts:
            name = type(contract.wrapped).__name__
            owner = f"{name} {numbers[name]}"
            numbers[name] += 1
            groups = _claim(groups, contract.param_groups(self), named, owner)
        self._check_scheduler(len(groups))
        optim.rebuild(
            self.optimizer,
            groups,
            named,
            self._optimizer_names,
            reset_state=reset_optimizer_state,
        )
        self._known |= set(named)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        self._optimizer_names = {id(p): n for n, p in named.items()}
        self.optimized_param_id = named

    def _extend_groups(self, named: dict[str, nn.Parameter]) -> list[dict[str, Any]]:
        """Keep the groups as they are and find a home for new parameters."""
        groups = [
            dict(g, names=[n for n in g["names"] if n in named]) for g in self._groups
        ]
        held = {n for g in groups for n in g["names"]}
        new = [n for n in named if n not in held and n not in self._left_out]
        if new:
            plain = optim.clip_param_groups([(n, named[n]) for n in new])[1]["names"]
            options = self.optimizer.param_groups[: len(groups)]
            for name in new:
                groups[optim.home_of(name in plain, options)]["names"].append(name)
        return groups

    def _check_scheduler(self, count: int) -> None:
        stock = any(contract.sets_learning_rate for contract in self.contracts)
        if stock and count > len(self.optimizer.param_groups):
            raise ValueError(
                "A plugin adds parameter groups, but LRSchedulerPlugin's scheduler "
                f"knows {len(self.optimizer.param_groups)} only; use the strategy's "
                "schedule instead, or build the optimizer with all groups."
            )

    def check_model_and_optimizer(
        self, reset_optimizer_state: bool | None = None, **kwargs: Any
    ) -> None:
        """Adapt the model, then the optimiser, then DDP."""
        if _at_task_boundary(self.experience, before=True):
            self.model = self.model_adaptation()
            reset = reset_optimizer_state
            self.make_optimizer(
                reset_optimizer_state=self.reset_optimizer_state
                if reset is None
                else reset,
                **kwargs,
            )
        self._wrap()

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Call ``adaptation(experience)`` of growing modules, in training only."""
        model = self.model if model is None else model
        # A model restored inside an experience has already grown for it.
        if self.is_training and self._pending is None:
            for module in list(model.modules()):
                adapt = getattr(module, "adaptation", None)
                # Avalanche's modules may ask to be adapted by their parent.
                if callable(adapt) and getattr(module, "_auto_adapt", True):
                    adapt(self.experience)
        return model.to(self.device)

    def _wrap(self) -> None:
        if not distributed.is_distributed():
            return
        ids = frozenset(id(p) for p in self.model.parameters() if p.requires_grad)
        if self._ddp is None or ids != self._ddp_ids:
            self._ddp = None
            self._ddp = nn.parallel.DistributedDataParallel(
                self._synced_module(), find_unused_parameters=True
            )
            self._ddp_ids = ids

    def _synced_module(self) -> nn.Module:
        """What several processes wrap: its forward pass encodes a batch."""
        return distributed.SyncedModel(self.model)

    def optimizer_state(self, *, copied: bool = True) -> dict[str, Any]:
        """Moments by parameter name and options by group, as plain data.

        :param copied: False gives the optimiser's own tensors, to be written
            before the next step.
        """
        named = self._optimizer_names
        state = {
            named[id(p)]: {
                k: v.detach().clone() if copied and isinstance(v, Tensor) else v
                for k, v in entry.items()
            }
            for p, entry in self.optimizer.state.items()
            if id(p) in named
        }
        options = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimizer.param_groups
        ]
        return {"state": state, "groups": options}

    def load_optimizer_state(self, stored: dict[str, Any]) -> None:
        """Put back what :meth:`optimizer_state` returned.

        :raises ValueError: if there are other groups, naming them.
        """
        groups = {group["owner"]: group for group in self.optimizer.param_groups}
        known = {options["owner"]: options for options in stored["groups"]}
        if groups.keys() != known.keys():
            raise ValueError(
                f"The stored optimizer has {len(known)} parameter groups "
                f"{list(known)}, this one {len(groups)} {list(groups)}; build it with "
                "the same groups and plugins."
            )
        # The order counts: a norm over all gradients is a sum in this order.
        self.optimizer.param_groups[:] = [groups[owner] for owner in known]
        for owner, options in known.items():
            groups[owner].update(options)
        named = optim.trainable(self.model)
        self.optimizer.state.clear()
        for name, entry in stored["state"].items():
            if name in named:
                parameter = named[name]
                self.optimizer.state[parameter] = {
                    k: fit_moment(_to_device(v, k, parameter), parameter)
                    for k, v in entry.items()
                }


def _to_device(value: Any, key: str, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # torch keeps step counters on the CPU unless the optimiser is fused.
    return value.clone() if key == "step" else value.to(parameter.device, copy=True)


def _claim(
    groups: list[dict[str, Any]],
    claimed: Any,
    named: dict[str, nn.Parameter],
    owner: str,
) -> list[dict[str, Any]]:
    """Move the names that a plugin claims from the groups into its own."""
    extra = [{**g, "owner": f"{owner} {i}"} for i, g in enumerate(claimed)]
    taken = {n for g in extra for n in g["names"]}
    unknown = sorted(taken - set(named))
    if unknown:
        raise ValueError(
            f"A plugin's param_groups name unknown parameters {unknown}."
            f"{did_you_mean(unknown, named)}"
        )
    rest = [dict(g, names=[n for n in g["names"] if n not in taken]) for g in groups]
    return rest + extra
