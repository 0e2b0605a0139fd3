"""The groups of an optimiser, which follow the model by parameter name."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_clip.common.checks import did_you_mean
from avalanche_clip.common.grown import fit_moment
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.contract import MethodPlugin

Groups = list[dict[str, Any]]
_NOT_COMPARED = ("params", "param_names", "owner", "initial_lr", "fused", "foreach")
"""Entries of a group that are no setting of the method; how it is computed may differ
between devices."""
_left_to_optimizer = partial(optim.clip_param_groups, weight_decay=None)


class OptimizerGroups:
    """Builds, rebuilds, stores and restores an optimiser by parameter name.

    :param rule: names of each group, evaluated again whenever the model changes; None
        keeps the groups that the optimiser has and finds a home for new parameters.
    :param may_be_empty: whether nothing may be trained.
    """

    def __init__(self, rule: optim.GroupRule | None, *, may_be_empty: bool = False):
        self.rule = rule
        self.may_be_empty = may_be_empty
        self.names: Groups = []
        """Names per group, without the groups of plugins."""
        self.built: Groups = []
        """Options and names of each group as the optimiser was built."""
        self.known: set[str] = set()
        """Every name that was ever trainable."""
        self._held: dict[int, str] = {}
        self._left_out: set[str] = set()

    def build(
        self,
        model: nn.Module,
        optimizer: Optimizer | Callable[..., Optimizer] | None,
        default: Callable[..., Optimizer],
        default_rule: optim.GroupRule | None,
    ) -> Optimizer:
        """Return a user's optimiser arranged by the rule, or build one.

        :param optimizer: an optimiser, what builds one from groups, or None.
        :param default: builds one where the user gives none,
        :param default_rule: with these groups where the user gives no rule either.
        """
        named = optim.trainable(model)
        if not (self.rule is None or callable(self.rule)):
            raise TypeError(
                f"param_groups is a {type(self.rule).__name__}; give a callable that "
                "takes named parameters and returns groups with their names, or None."
            )
        if isinstance(optimizer, Optimizer):
            if self.rule is not None:
                self._regroup(optimizer, named)
        elif optimizer is not None and not callable(optimizer):
            raise TypeError(
                f"optimizer is a {type(optimizer).__name__}; give an Optimizer, a "
                "callable that takes parameter groups, or None."
            )
        else:
            rule = self.rule or _left_to_optimizer
            if optimizer is None:
                optimizer, self.rule = default, self.rule or default_rule
                rule = self.rule or optim.clip_param_groups
            optimizer = optimizer(
                [
                    {"params": [named[n] for n in group["names"]], **_options(group)}
                    for group in optim.assign_names(rule, named)
                ]
            )
        self._remember(optimizer, named)
        return optimizer

    def _regroup(self, optimizer: Optimizer, named: dict[str, nn.Parameter]) -> None:
        """Arrange a user's optimiser as the user's rule says."""
        groups = optim.assign_names(self.rule, named)
        names = {id(p): n for n, p in named.items()}
        optim.rebuild(optimizer, groups, named, names, reset_state=False)
        for group, rule in zip(optimizer.param_groups, groups):
            group.update(_options(rule))

    def _remember(self, optimizer: Optimizer, named: dict[str, nn.Parameter]) -> None:
        self.names = optim.group_names(optimizer, named)
        held = {n for g in self.names for n in g["names"]}
        if not held and not self.may_be_empty:
            raise ValueError(
                "The optimizer holds no trainable parameter of the model; build it "
                "from this model's parameters, or pass a callable."
            )
        self._left_out = set(named) - held
        self.built = [
            {k: copy.deepcopy(v) for k, v in group.items() if k not in _NOT_COMPARED}
            | {"names": list(named_group["names"])}
            for group, named_group in zip(optimizer.param_groups, self.names)
        ]
        for place, group in enumerate(optimizer.param_groups):
            # What options are stored and found by, from the first checkpoint on.
            group["owner"] = f"rule {place}"
            # Frozen parameters of a user's optimiser leave it at once.
            group["params"] = [named[n] for n in self.names[place]["names"]]
        self._hold(optimizer, named)

    def _hold(self, optimizer: Optimizer, named: dict[str, nn.Parameter]) -> None:
        """Note the parameters that the optimiser has now."""
        self.known |= set(named)
        self._held = {id(p): n for n, p in named.items()}
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))

    def rebuild(self, strategy: Any, *, reset: bool) -> dict[str, nn.Parameter]:
        """Make the groups those of the model as it is now; return all parameters.

        :param strategy: its optimiser is changed in place; its plugins may claim
            parameters for groups of their own.
        :param reset: forget moments.
        """
        optimizer, named = strategy.optimizer, optim.trainable(strategy.model)
        if self.rule is not None:
            self.names = optim.assign_names(self.rule, named)
        else:
            self.names = self._extended(optimizer, named)
        groups = [{**g, "owner": f"rule {i}"} for i, g in enumerate(self.names)]
        numbers: Counter[str] = Counter()
        for contract in strategy.contracts:
            name = type(contract.wrapped).__name__
            owner = f"{name} {numbers[name]}"
            numbers[name] += 1
            groups = _claim(groups, contract.param_groups(strategy), named, owner)
        _check_schedulers(strategy.contracts, len(groups), optimizer)
        optim.rebuild(optimizer, groups, named, self._held, reset_state=reset)
        self._hold(optimizer, named)
        return named

    def _extended(self, optimizer: Optimizer, named: dict[str, nn.Parameter]) -> Groups:
        """Keep the groups as they are and find a home for new parameters."""
        groups = [
            dict(g, names=[n for n in g["names"] if n in named]) for g in self.names
        ]
        held = {n for g in groups for n in g["names"]}
        new = [n for n in named if n not in held and n not in self._left_out]
        plain = optim.clip_param_groups([(n, named[n]) for n in new])[1]["names"]
        options = optimizer.param_groups[: len(groups)]
        for name in new:
            groups[optim.home_of(name in plain, options)]["names"].append(name)
        return groups

    # ------------------------------------------------------------------ state
    def state(self, optimizer: Optimizer, *, copied: bool = True) -> dict[str, Any]:
        """Moments by parameter name and options by group, as plain data.

        :param copied: False gives the optimiser's own tensors, to be written
            before the next step.
        """
        state = {
            self._held[id(p)]: {
                k: v.detach().clone() if copied and isinstance(v, Tensor) else v
                for k, v in entry.items()
            }
            for p, entry in optimizer.state.items()
            if id(p) in self._held
        }
        options = [
            {k: v for k, v in group.items() if k != "params"}
            for group in optimizer.param_groups
        ]
        return {"state": state, "groups": options}

    def load(
        self, optimizer: Optimizer, model: nn.Module, stored: dict[str, Any]
    ) -> None:
        """Put back what :meth:`state` returned.

        :raises ValueError: if there are other groups, naming them.
        """
        groups = {group["owner"]: group for group in optimizer.param_groups}
        known = {options["owner"]: options for options in stored["groups"]}
        if groups.keys() != known.keys():
            raise ValueError(
                f"The stored optimizer has {len(known)} parameter groups "
                f"{list(known)}, this one {len(groups)} {list(groups)}; build it with "
                "the same groups and plugins."
            )
        # The order counts: a norm over all gradients is a sum in this order.
        optimizer.param_groups[:] = [groups[owner] for owner in known]
        for owner, options in known.items():
            groups[owner].update(options)
        named = optim.trainable(model)
        optimizer.state.clear()
        for name, entry in stored["state"].items():
            if name in named:
                parameter = named[name]
                optimizer.state[parameter] = {
                    k: fit_moment(_to_device(v, k, parameter), parameter)
                    for k, v in entry.items()
                }

    def resume(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        stored: dict[str, Any],
        *,
        inside: bool,
    ) -> None:
        """Put back an optimiser that may have had other groups of plugins.

        Groups that it had more are added. Between experiences those of plugins go
        where it had fewer: the next experience makes them again.

        :param model: put back already.
        :param stored: from :meth:`state`, with the ``"names"`` of each group.
        :param inside: whether the stored run was inside an experience.
        """
        owners = [options["owner"] for options in stored["groups"]]
        if not inside:
            optimizer.param_groups[:] = [
                group
                for group in optimizer.param_groups
                if group["owner"] in owners or group["owner"].startswith("rule ")
            ]
        have = {group["owner"] for group in optimizer.param_groups}
        for owner in owners:
            if owner not in have:
                optimizer.add_param_group({"params": [], "owner": owner})
        self.load(optimizer, model, stored)
        self.names = [{"names": list(group)} for group in stored["names"]]
        # Moments are found by the names of the parameters as they are now.
        self._hold(optimizer, optim.trainable(model))


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k != "names"}


def _check_schedulers(
    contracts: list[MethodPlugin], count: int, optimizer: Optimizer
) -> None:
    """Refuse more groups than the scheduler of a plugin knows."""
    have = len(optimizer.param_groups)
    for contract in contracts:
        if contract.sets_learning_rate and count > have:
            name = type(contract.wrapped).__name__
            raise ValueError(
                f"A plugin adds parameter groups, but {name}'s scheduler knows {have} "
                "only; use the strategy's schedule instead, or build the optimizer "
                "with all groups."
            )


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
    one = isinstance(claimed, (str, Mapping)) or not isinstance(claimed, Iterable)
    given: list[Any] = [None] if one else list(claimed)
    lists = [g["names"] for g in given if isinstance(g, Mapping) and "names" in g]
    if len(lists) < len(given) or any(isinstance(names, str) for names in lists):
        raise ValueError(
            f"param_groups of {owner} must return a list of dicts with the names of "
            f"each group ('names': [...], 'lr': ...), not {claimed!r:.200}."
        )
    extra = [
        {**g, "names": list(g["names"]), "owner": f"{owner} {i}"}
        for i, g in enumerate(given)
    ]
    names = [name for group in extra for name in group["names"]]
    taken = set(names)
    unknown = sorted(taken - set(named))
    if unknown:
        raise ValueError(
            f"param_groups of {owner} name unknown parameters {unknown}: the model "
            f"has none of that name that is trained.{did_you_mean(unknown, named)}"
        )
    others = [g for g in groups if not g["owner"].startswith("rule ")]
    held = {name: g["owner"] for g in others for name in g["names"]}
    for name in taken:
        holder = owner if names.count(name) > 1 else held.get(name)
        if holder:
            raise ValueError(
                f"{owner} claims {name!r} in param_groups, which {holder} claims "
                "too; a parameter has one group: let one plugin claim it, once."
            )
    rest = [dict(g, names=[n for n in g["names"] if n not in taken]) for g in groups]
    return rest + extra
