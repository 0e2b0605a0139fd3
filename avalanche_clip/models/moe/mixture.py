"""A mixture of bottleneck experts with one router per task.

Source: Yu et al., "Boosting Continual Learning of Vision-Language Models via
Mixture-of-Experts Adapters", CVPR 2024 (arXiv 2403.11549), and the authors'
released code, whose defaults are used. Noise follows train and eval mode, ties
go to the lowest index, and the width of the bottleneck is free; these three are
our choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import (
    as_finite,
    as_size,
    require_choice,
)
from avalanche_clip.models.moe.dispatch import (
    ACTIVATIONS,
    ExpertTensors,
    expert_output,
    mix_experts,
)
from avalanche_clip.models.moe.gating import (
    Routing,
    balance_loss,
    expert_load,
    importance,
    route,
)
from avalanche_clip.models.moe.kernels import MixtureRule
from avalanche_clip.models.peft.branch import set_trainable
from avalanche_clip.models.peft.routes import (
    SKIP,
    RowIds,
    for_rows,
    is_recomputation,
    parse_ids,
    present,
)

NUM_EXPERTS = 22
"""Published size of the pool: two experts per data set of MTIL."""
ROUTER_INPUTS = ("first", "mean")
RANKINGS = ("all", "unfrozen")


class Expert(nn.Module):
    """A bottleneck: narrow, activate, widen.

    The output starts at zero: ``up`` is zero, ``down`` uniform in
    ``1 / sqrt(width)``, all biases zero.

    :param width: channels D of input and output.
    :param rule: scale, activation and dropout of the mixture.
    :param bottleneck: hidden width b.
    :param bias: whether both layers have a bias.
    """

    def __init__(self, width: int, rule: MixtureRule, bottleneck: int, bias: bool):
        super().__init__()
        self.rule = rule
        self.down = nn.Linear(width, bottleneck, bias=bias)
        self.up = nn.Linear(bottleneck, width, bias=bias)
        nn.init.zeros_(self.up.weight)
        if bias:
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    def tensors(self) -> ExpertTensors:
        """Return the four tensors; biases are None without them."""
        down, up = self.down, self.up
        return ExpertTensors(down.weight, down.bias, up.weight, up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply this expert alone to every token of ``(..., D)``."""
        return expert_output(x, self.tensors(), _at(self.rule, self.training))


def _at(rule: MixtureRule, training: bool) -> MixtureRule:
    return rule if training else replace(rule, dropout=0.0)


class Router(nn.Module):
    """Scores of the experts, and the scale of their noise, from one token.

    Both matrices start at zero, so that early routing is uniformly random.

    :param width: channels D of the token.
    :param num_experts: E.
    """

    def __init__(self, width: int, num_experts: int):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width, num_experts))
        self.noise = nn.Parameter(torch.zeros(width, num_experts))


class MoEAdapter(nn.Module):
    """Mix the outputs of k out of E small experts, chosen per row by a router.

    ``forward(x)`` gives the mixture's output alone; whoever owns the adapter
    adds it to the branch it belongs to. A fresh adapter gives zeros. Experts
    that no row keeps get no gradient at all.

    Memory: ``E (2 D b + b + D)`` numbers for the experts and ``2 D E`` per
    router. In training the hidden activations, ``B L k b``, are saved beside
    the input.

    :param width: channels D of the tokens.
    :param num_experts: E.
    :param top_k: experts kept per row, k.
    :param bottleneck: hidden width b of an expert.
    :param scale: factor s of every expert's output.
    :param dropout: probability for hidden activations in training.
    :param activation: ``"relu"``, or ``"identity"`` for low-rank updates.
    :param bias: whether experts have biases; ``activation="identity"`` with
        ``bias=False`` is the LoRA form.
    :param router_input: ``"first"``: the router reads token 0 (class token,
        or start of text); ``"mean"``: the mean of all tokens given, padding
        included.
    :param noise_floor: smallest scale of the training noise.
    :raises ValueError: if a value is out of range.
    :raises TypeError: if a size is no integer.

    Source: Yu et al., CVPR 2024, section 3.2, and the released code.

    >>> moe = MoEAdapter(16, num_experts=4)
    >>> moe(torch.randn(2, 5, 16)).abs().max()
    tensor(0., grad_fn=<MaxBackward1>)
    >>> moe.add_router()
    1
    """

    def __init__(
        self,
        width: int,
        num_experts: int = NUM_EXPERTS,
        top_k: int = 2,
        bottleneck: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
        *,
        activation: str = "relu",
        bias: bool = True,
        router_input: str = "first",
        noise_floor: float = 0.01,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "num_experts": num_experts, "bottleneck": bottleneck}
        for name, value in (sizes | {"top_k": top_k}).items():
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name}={value!r} is no integer; choose 1 or more.")
            as_size(value, name)
        if top_k > num_experts:
            raise ValueError(
                f"top_k={top_k} exceeds num_experts={num_experts}; choose top_k <="
                " num_experts."
            )
        as_finite(dropout, "dropout", low=0, high=1)
        as_finite(scale, "scale")
        require_choice("activation", activation, ACTIVATIONS)
        require_choice("router_input", router_input, ROUTER_INPUTS)
        as_finite(noise_floor, "noise_floor", low=0)
        self.width, self.num_experts, self.top_k = width, num_experts, top_k
        self.bottleneck, self.bias = bottleneck, bias
        self.rule = MixtureRule(scale, activation, dropout)
        self.router_input, self.noise_floor = router_input, noise_floor
        #: whether training passes count which experts rows keep
        self.counting = True
        #: whether training passes collect the balance loss
        self.track_balance = False
        #: whether training passes do neither for now
        self.paused = False
        self._balance: list[Tensor] = []
        self._active = 0
        self.experts = nn.ModuleList(
            Expert(width, self.rule, bottleneck, bias) for _ in range(num_experts)
        )
        self.routers = nn.ModuleList([Router(width, num_experts)])
        self.frozen: Tensor
        self.register_buffer("frozen", torch.zeros(num_experts, dtype=torch.bool))
        #: rows that kept each expert, int64 ``(E,)``. No buffer, since each
        #: process of a distributed run counts its own rows.
        self.counts = torch.zeros(num_experts, dtype=torch.int64)
        self._shared = self.counts  # the part that all processes have in common

    # ----------------------------------------------------------------- options
    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments except ``width``, as plain data."""
        own = (
            "num_experts",
            "top_k",
            "bottleneck",
            "bias",
            "router_input",
            "noise_floor",
        )
        return {n: getattr(self, n) for n in own} | asdict(self.rule)

    # ----------------------------------------------------------------- routers
    @property
    def num_routers(self) -> int:
        """Number of routers; their ids are 0 to this number minus 1."""
        return len(self.routers)

    @property
    def active_router(self) -> int:
        """The router that ``forward(x)`` uses."""
        return self._active

    def add_router(self) -> int:
        """Add a router at zero, trainable; the active one stays active.

        :return: its id.
        """
        router = Router(self.width, self.num_experts)
        self.routers.append(router.to(self._gate(0)))
        return self.num_routers - 1

    def activate_router(self, router: int) -> None:
        """Use a router by default, and make it the only trainable one.

        :param router: id of an existing router.
        :raises ValueError: if there is none of this id.
        """
        self.check_known([router])
        if router < 0:
            raise ValueError(f"Router {router} cannot be active; ids start at 0.")
        self._active = router
        for number, module in enumerate(self.routers):
            set_trainable(module, number == router)

    def _gate(self, router: int) -> Tensor:
        return self.routers[router].gate  # type: ignore[return-value]

    def check_known(self, routers: Iterable[int]) -> None:
        """Raise ValueError unless all ids are -1 or those of routers."""
        unknown = [r for r in routers if not SKIP <= r < self.num_routers]
        if unknown:
            raise ValueError(
                f"Router {unknown[0]} does not exist; there are {self.num_routers}"
                f" (ids 0 to {self.num_routers - 1}, {SKIP} skips the mixture). Add one"
                " with add_router()."
            )

    # ----------------------------------------------------------------- forward
    def forward(self, x: Tensor, router: Any = None) -> Tensor:
        """Compute the mixture for every token.

        :param x: floating point, shape ``(B, L, D)``, any strides; or
            ``(B, D)``, one token per row.
        :param router: id for all rows, or a LongTensor ``(B,)`` of ids; -1
            gives zeros; None uses the active router.
        :return: shape and type of ``x``.
        :raises ValueError: for another shape or an unknown id.
        :raises TypeError: if ``x`` is not floating point.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"Tokens have type {x.dtype}; give floating point activations."
            )
        if x.ndim not in (2, 3) or x.shape[-1] != self.width:
            raise ValueError(
                f"Tokens have shape {tuple(x.shape)}; give (B, L, D) or (B, D) with"
                f" D={self.width}."
            )
        ids = self._parse(router, len(x))
        if x.ndim == 2:
            return self._forward(x[:, None], ids)[:, 0]
        return self._forward(x, ids)

    def _parse(self, router: Any, rows: int) -> int | RowIds:
        ids = self._active if router is None else parse_ids(router)
        ids = for_rows(ids, rows, "router ids", "rows")
        self.check_known(present(ids))
        return ids

    def _forward(self, x: Tensor, ids: int | RowIds) -> Tensor:
        if isinstance(ids, int):
            return torch.zeros_like(x) if ids == SKIP else self._mix(x, ids)
        if ids.present[0] != SKIP:
            return self._mix(x, ids)
        on_device = ids.ids.to(x.device)
        rows = torch.nonzero(on_device != SKIP).squeeze(1)
        kept = RowIds(on_device[rows], ids.present[1:])
        part = self._mix(x.index_select(0, rows), kept)
        return torch.zeros_like(x).index_copy(0, rows, part)

    def _mix(self, x: Tensor, ids: int | RowIds) -> Tensor:
        if not x.shape[0] or not x.shape[1]:
            return x * 0.0
        clean, noise_std = self._scores(x, ids)
        routing = route(clean, self.top_k, noise_std)
        counts = None
        if self.training and not self.paused:
            again = is_recomputation()
            if self.track_balance:
                # Recomputed as well, since autograd compares the saved tensors.
                value = self._balance_of(clean, routing, noise_std)
                self._balance += [] if again else [value]
            if self.counting and not again:
                counts = routing.counts()
                self.counts = self.counts.to(x.device) + counts
        experts = [expert.tensors() for expert in self.experts]  # type: ignore[operator]
        return mix_experts(
            x, routing, experts, _at(self.rule, self.training), counts=counts
        )

    def routing(self, x: Tensor, router: Any = None) -> Routing:
        """Tell which experts each row keeps; nothing is counted.

        :param x: shape ``(B, L, D)``, L at least 1.
        :param router: as in :meth:`forward`, without -1.
        :return: kept experts and weights, with noise in training mode.
        """
        ids = self._parse(router, len(x))
        if SKIP in present(ids):
            raise ValueError(f"Router id {SKIP} keeps no experts; leave such rows out.")
        clean, noise_std = self._scores(x, ids)
        return route(clean, self.top_k, noise_std)

    def _scores(self, x: Tensor, ids: int | RowIds) -> tuple[Tensor, Tensor | None]:
        """Scores ``(B, E)``, and in training the scale of their noise."""
        token = x[:, 0] if self.router_input == "first" else x.mean(1)
        with torch.autocast(x.device.type, enabled=False):
            gate = self._gate(0)
            token = token.to(torch.promote_types(gate.dtype, torch.float32))
            clean = self._per_router(token, ids, "gate")
            if not self.training:
                return clean, None
            spread = self._per_router(token, ids, "noise")
            return clean, nn.functional.softplus(spread) + self.noise_floor

    def _per_router(self, token: Tensor, ids: int | RowIds, kind: str) -> Tensor:
        def matrix(router: int) -> Tensor:
            return getattr(self.routers[router], kind).to(token.dtype)

        if isinstance(ids, int):
            return token @ matrix(ids)
        if len(ids.present) == 1:
            return token @ matrix(ids.present[0])
        every = token @ torch.cat([matrix(r) for r in ids.present], 1)
        every = every.view(len(token), len(ids.present), self.num_experts)
        known = torch.tensor(ids.present, device=token.device)
        column = torch.searchsorted(known, ids.ids.to(token.device))
        return every[torch.arange(len(token), device=token.device), column]

    def _balance_of(
        self, clean: Tensor, routing: Routing, noise_std: Tensor | None
    ) -> Tensor:
        load = expert_load(clean, routing.logits, self.top_k, noise_std)
        return balance_loss(importance(routing.gates()), load)

    # ----------------------------------------------------------- balance, usage
    def balance(self) -> Tensor:
        """Sum the balance loss over the training passes since it was cleared.

        :return: 0-d, with gradient where the passes had one; 0 if there were
            none, or ``track_balance`` is False.
        """
        none = self._gate(0).new_zeros(())
        return torch.stack(self._balance).sum() if self._balance else none

    def clear_balance(self) -> None:
        """Forget the collected balance loss and its graph."""
        self._balance = []

    def clear_counts(self) -> None:
        """Set the usage counters to zero."""
        self.counts = self._shared = torch.zeros_like(self.counts)

    def freeze_most_used(self, count: int = 2, rank_over: str = "all") -> list[int]:
        """Freeze the experts that most training rows kept.

        :param count: how many are ranked first, 0 to E.
        :param rank_over: ``"all"`` ranks frozen experts too, so fewer than
            ``count`` may be added, and experts that no row kept come last;
            ``"unfrozen"`` adds ``count`` of those in use as long as there are any.
        :return: experts frozen by this call, most used first. Ties go to the
            lowest index. None if no row was counted at all.
        :raises ValueError: if an argument is out of range.

        Source: Yu et al., CVPR 2024, section 3.3 (activate-freeze); the
        released code ranks over all experts.
        """
        if not 0 <= count <= self.num_experts:
            raise ValueError(
                f"count={count} is out of range; choose 0 <= count <= num_experts="
                f"{self.num_experts}."
            )
        require_choice("rank_over", rank_over, RANKINGS)
        ranked = self.counts.sort(descending=True, stable=True)
        used = int((ranked.values > 0).sum())
        order = ranked.indices.tolist() if used else []
        frozen = set(self.frozen.nonzero().flatten().tolist())
        if rank_over == "unfrozen":
            order = [e for e in order[:used] if e not in frozen]
        added = [e for e in order[:count] if e not in frozen]
        self.freeze_experts(added)
        return added

    def freeze_experts(self, experts: Sequence[int]) -> None:
        """Stop training some experts for ever; all routers may still keep them.

        :param experts: their indices.
        """
        for expert in experts:
            self.frozen[expert] = True
            set_trainable(self.experts[expert], False)

    # ------------------------------------------------------------------ storage
    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> MoEAdapter:
        super()._apply(fn, recurse)
        self.counts, self._shared = fn(self.counts), fn(self._shared)
        return self

    def _save_to_state_dict(
        self, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "counts"] = self.counts

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Grow routers as needed; leave everything alone for a plain model's state."""
        names = [k[len(prefix) :] for k in state_dict if k.startswith(prefix)]
        if prefix and not names:
            state_dict.update(self.state_dict(prefix=prefix))
        ids = [int(n.split(".")[1]) for n in names if n.startswith("routers.")]
        while self.num_routers < max(ids, default=-1) + 1:
            set_trainable(self.routers[self.add_router()], False)
        counts = state_dict.pop(prefix + "counts", None)
        if counts is not None:
            self.counts = counts.detach().to(self.frozen.device, copy=True)
            self._shared = self.counts
        before = self.frozen.tolist()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for expert, (was, is_now) in enumerate(zip(before, self.frozen.tolist())):
            if was != is_now:
                set_trainable(self.experts[expert], not is_now)

    def __getstate__(self) -> dict[str, Any]:
        # the graph of the last step belongs to no copy
        return {**self.__dict__, "_balance": []}

    def extra_repr(self) -> str:
        """Describe the mixture in one line."""
        facts = {"width": self.width, "num_routers": self.num_routers}
        return ", ".join(f"{k}={v!r}" for k, v in (facts | self.options()).items())
