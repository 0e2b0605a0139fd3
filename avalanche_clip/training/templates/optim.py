"""Optimisers whose groups follow the model by parameter name.

Works around ``update_optimizer`` of avalanche-lib 0.6.0, which adds frozen
parameters, fails with several parameter groups, restarts the moments of grown
parameters and keeps removed ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_finite
from avalanche_clip.common.grown import fit_moment
from avalanche_clip.models.encoders.parameters import depths

Named = Iterable[tuple[str, nn.Parameter]]
GroupRule = Callable[[Named], Sequence[Any]]

_NO_DECAY = ("bn", "ln", "bias", "logit_scale")


def clip_param_groups(
    named_parameters: Named, weight_decay: float | None = 0.2
) -> list[dict[str, Any]]:
    """Split parameters as OpenCLIP does: weight decay on matrices only.

    :param named_parameters: pairs of name and parameter.
    :param weight_decay: decay of the first group; None leaves it to the optimiser.
    :return: two groups with ``names``: tensors of two or more dimensions whose
        name lacks ``bn``, ``ln``, ``bias`` and ``logit_scale``, and the rest
        with weight decay 0.
    """
    decayed: list[str] = []
    rest: list[str] = []
    for name, parameter in named_parameters:
        plain = parameter.ndim < 2 or any(part in name for part in _NO_DECAY)
        (rest if plain else decayed).append(name)
    own = {} if weight_decay is None else {"weight_decay": weight_decay}
    return [{"names": decayed, **own}, {"names": rest, "weight_decay": 0.0}]


def layer_wise_rates(
    model: Any, lr: float, decay: float, *, weight_decay: float | None = 0.2
) -> GroupRule:
    """Give earlier layers smaller learning rates: ``param_groups`` of a strategy.

    What follows the residual blocks of a tower, and all that is in no tower, has the
    rate ``lr``; each block before has ``decay`` times that of the next one, and what
    comes before the first block the smallest. Schedules multiply all of them.

    :param model: the dual encoder that is trained.
    :param lr: rate of the last layers, above 0.
    :param decay: in (0, 1]; 1 gives all layers the same rate.
    :param weight_decay: see :func:`clip_param_groups`.
    :return: the rule.
    :raises ValueError: for values out of range, and for towers without plain residual
        blocks.

    Source: Clark et al., ICLR 2020 (ELECTRA, arXiv 2003.10555); for image towers Bao
    et al., ICLR 2022 (BEiT, arXiv 2106.08254).

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> groups = layer_wise_rates(model, 1e-3, 0.5)(list(model.named_parameters()))
    >>> sorted({group["lr"] for group in groups})
    [3.125e-05, 6.25e-05, 0.000125, 0.00025, 0.0005, 0.001]
    """
    lr, decay = as_finite(lr, "lr", above=0), as_finite(decay, "decay", above=0, high=1)
    for tower in ("image", "text"):
        depths(model, tower)

    def rule(named_parameters: Named) -> list[dict[str, Any]]:
        below: dict[str, int] = {}
        for tower in ("image", "text"):
            found = depths(model, tower)
            top = len(model.blocks(tower)) + 1
            below |= {name: top - depth for name, depth in found.items()}
        named = dict(named_parameters)
        groups = []
        for steps in sorted({below.get(name, 0) for name in named}):
            part = [(n, p) for n, p in named.items() if below.get(n, 0) == steps]
            for group in clip_param_groups(part, weight_decay):
                if group["names"]:
                    groups.append({**group, "lr": lr * decay**steps})
        return groups

    return rule


def one_group(named_parameters: Named) -> list[dict[str, Any]]:
    """Put all parameters into one group without weight decay.

    :param named_parameters: pairs of name and parameter.
    """
    names = [name for name, _ in named_parameters]
    return [{"names": names, "weight_decay": 0.0}]


def default_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with OpenCLIP's values for vision transformers (TiC-CLIP)."""
    return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that need gradients, by name."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def assign_names(
    rule: GroupRule | None, named: dict[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """Evaluate a rule and check that it covers every parameter once.

    :param rule: returns name lists, or dicts with ``names`` and options;
        default :func:`clip_param_groups`.
    :param named: trainable parameters.
    :return: one dict per group.
    :raises ValueError: if a name is missing or repeated. Names that are no
        trainable parameters (frozen ones) are left out.
    """
    rows = (rule or clip_param_groups)(list(named.items()))
    groups = [dict(r) if isinstance(r, dict) else {"names": list(r)} for r in rows]
    for group in groups:
        if "names" not in group:
            raise ValueError(
                "param_groups must return lists of names, or dicts with 'names' and "
                f"options; got a dict with {sorted(group)}."
            )
    seen = [name for group in groups for name in group["names"]]
    known = [name for name in seen if name in named]
    missing = sorted(set(named) - set(known))
    repeated = sorted(n for n, count in Counter(known).items() if count > 1)
    if missing or repeated:
        raise ValueError(
            "param_groups must name every trainable parameter exactly once; missing "
            f"{missing[:5]}, repeated {repeated[:5]}."
        )
    for group in groups:
        group["names"] = [n for n in group["names"] if n in named]
    return groups


def home_of(parameter_is_plain: bool, groups: list[dict[str, Any]]) -> int:
    """Choose the group of a new parameter by weight decay.

    :param parameter_is_plain: whether the parameter takes no weight decay.
    :param groups: options of the groups, with ``weight_decay`` where known.
    :return: the first group that decays (or, for a plain parameter, does not);
        group 0 where there is none.
    """
    for index, group in enumerate(groups):
        if (float(group.get("weight_decay", 0.0)) == 0.0) == parameter_is_plain:
            return index
    return 0


def rebuild(
    optimizer: Optimizer,
    groups: list[dict[str, Any]],
    named: dict[str, nn.Parameter],
    old_names: dict[int, str],
    *,
    reset_state: bool,
) -> None:
    """Point an optimiser at the parameters of a changed model, in place.

    :param optimizer: keeps its groups and their options; groups are added
        when there are more now.
    :param groups: names per group, as from :func:`assign_names`; ``owner``
        tells which group of the optimiser continues as which, by default the
        one in the same place.
    :param named: trainable parameters by name.
    :param old_names: name of each parameter the optimiser held, by ``id``.
    :param reset_state: forget moments instead of carrying them by name.
    """
    old_state = {
        old_names[id(p)]: state
        for p, state in optimizer.state.items()
        if id(p) in old_names
    }
    # A rule may return more groups later, so that positions say nothing.
    held = {
        g.get("owner", f"rule {i}"): g for i, g in enumerate(optimizer.param_groups)
    }
    for index, group in enumerate(groups):
        owner = group.get("owner", f"rule {index}")
        params = [named[n] for n in group["names"]]
        if owner in held:
            held.pop(owner).update(params=params, owner=owner)
        else:
            options = {k: v for k, v in group.items() if k != "names"}
            optimizer.add_param_group({**options, "params": params, "owner": owner})
    for extra in held.values():
        extra["params"] = []
    optimizer.state.clear()
    if reset_state:
        return
    for name, parameter in named.items():
        if name in old_state:
            optimizer.state[parameter] = {
                key: fit_moment(value, parameter)
                for key, value in old_state[name].items()
            }


def group_names(
    optimizer: Optimizer, named: dict[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """Name the parameters of an optimiser built by the user.

    Parameters of the model that it does not hold are left out on purpose.
    """
    by_id = {id(p): n for n, p in named.items()}
    return [
        {"names": [by_id[id(p)] for p in g["params"] if id(p) in by_id]}
        for g in optimizer.param_groups
    ]
