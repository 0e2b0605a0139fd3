"""Small adapters in a text tower, one set per language, chosen by language code.

Source of the forms: Zhang et al., NeurIPS 2022 (MLA, arXiv 2206.11091) for the
bottleneck after each perceptron, Hu et al., ICLR 2022 (LoRA, arXiv 2106.09685) for
low-rank updates of queries and values; both as baselines of Yang et al., AAAI 2024
(CLL-CLIP, arXiv 2401.17186). Outputs start at zero (our choice for the bottleneck),
so that a new language starts from the base tower exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.models.encoders.blocks import BlockView

KINDS = ("mla", "lora")
CHILD = "language_adapter"
BASE = -1
"""Route of texts that pass the base tower only."""


class _Routed(nn.Module):
    """Modules by language code, applied to the rows that are routed to them."""

    def __init__(self) -> None:
        super().__init__()
        self.languages = nn.ModuleDict()
        self.route: int | Tensor = BASE

    def make(self) -> nn.Module:
        """Return the module of a new language."""
        raise NotImplementedError

    def add(self, code: int, like: Tensor) -> None:
        """Make the module of a language on the device of a tensor."""
        if str(code) not in self.languages:
            self.languages[str(code)] = self.make().to(like.device)

    @property
    def idle(self) -> bool:
        """Whether no row is routed to a language."""
        return isinstance(self.route, int) and self.route == BASE

    def mix(self, x: Tensor, apply: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
        """Apply to each row of ``x`` ``(N, L, D)`` the module of its language.

        :param apply: called with a module and its rows.
        :return: same shape; zeros for rows of the base tower.
        """
        if isinstance(self.route, int):
            return apply(self.languages[str(self.route)], x)
        if len(self.route) != len(x):
            raise ValueError(
                f"{len(self.route)} language codes were set for {len(x)} texts; set "
                "one per text, or one for all (batches of several languages cannot be "
                "cut into chunks)."
            )
        out = torch.zeros_like(x)
        for code in torch.unique(self.route).tolist():
            if code != BASE:
                rows = (self.route == code).nonzero().squeeze(1)
                found = apply(self.languages[str(code)], x[rows]).to(out.dtype)
                out = out.index_copy(0, rows, found)
        return out


class _Bottleneck(nn.Module):
    """``up(relu(down(x)))`` with a zero ``up``."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(x)))


class LanguageBottleneck(_Routed):
    """A bottleneck behind the perceptron of one block.

    With r the input of the perceptron's branch and y its output, the block's output
    r + y becomes ``r + y + up(relu(down(norm(r + y))))``, where the norm is the one
    that the block has before its perceptron.

    :param block: where to attach.
    :param inner: width of the bottleneck.
    """

    def __init__(self, block: BlockView, inner: int) -> None:
        super().__init__()
        self.width, self.inner = block.width, inner
        self.batch_first = block.batch_first
        # Not a child: it belongs to the block.
        self._norm = [block.norm2]
        self._residual: Tensor | None = None
        self.handles = [
            block.norm2.register_forward_pre_hook(self._before),
            block.mlp_out.register_forward_hook(self._after),
        ]

    def make(self) -> nn.Module:
        """Return the bottleneck of a new language."""
        return _Bottleneck(self.width, self.inner)

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._residual = None if self.idle else inputs[0]

    def _after(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if self._residual is None:
            return None
        residual, self._residual = self._residual, None
        # Called directly, so that the norm's own hooks do not run again.
        x = self._norm[0].forward(residual + output)
        x = x if self.batch_first else x.transpose(0, 1)
        found = self.mix(x, lambda bottleneck, rows: bottleneck(rows))
        found = found if self.batch_first else found.transpose(0, 1)
        return output + found.to(output.dtype)

    def detach_hooks(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()


class _LowRank(nn.Module):
    """``scale * x A^T B^T`` for queries and for values, with a zero B."""

    def __init__(self, width: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        for name in ("query", "value"):
            down = nn.Parameter(torch.empty(rank, width))
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            setattr(self, f"{name}_down", down)
            setattr(self, f"{name}_up", nn.Parameter(torch.zeros(width, rank)))

    def delta(self, name: str, x: Tensor) -> Tensor:
        """What is added to the projection ``name`` of ``x`` ``(N, L, D)``."""
        down, up = getattr(self, f"{name}_down"), getattr(self, f"{name}_up")
        return self.scale * F.linear(F.linear(x, down), up)


class LanguageLoRA(_Routed):
    """Low-rank updates of the query and value projections of one block.

    Attention modules with separate projections are hooked there; torch's
    ``MultiheadAttention``, which projects inside, gets another ``forward`` that does
    the same with the updates, and its own while no language is chosen.

    :param block: where to attach.
    :param rank: of the updates.
    :param alpha: updates are multiplied by ``alpha / rank``.
    :raises ValueError: for another attention module.
    """

    def __init__(self, block: BlockView, rank: int, alpha: float) -> None:
        super().__init__()
        self.width, self.rank, self.alpha = block.width, rank, alpha
        attention: Any = block.attn
        self._attention = [attention]
        self.handles: list[Any] = []
        if isinstance(attention, nn.MultiheadAttention):
            if attention.in_proj_weight is None:
                raise ValueError("The attention has keys of another width; use 'mla'.")
            attention.forward = self.attend  # type: ignore[method-assign]
        elif hasattr(attention, "q_proj") and hasattr(attention, "v_proj"):
            self.handles = [
                attention.q_proj.register_forward_hook(self._query),
                attention.v_proj.register_forward_hook(self._value),
            ]
        else:
            raise ValueError(
                f"LoRA knows no queries and values in {type(attention).__name__}; use "
                "kind='mla'."
            )

    def make(self) -> nn.Module:
        """Return the updates of a new language."""
        return _LowRank(self.width, self.rank, self.alpha)

    def _delta(self, name: str, x: Tensor) -> Tensor:
        return self.mix(x, lambda low_rank, rows: low_rank.delta(name, rows))  # type: ignore[operator]

    def _query(self, module: Any, inputs: tuple[Tensor], output: Tensor) -> Any:
        if self.idle:
            return None
        return output + self._delta("query", inputs[0]).to(output.dtype)

    def _value(self, module: Any, inputs: tuple[Tensor], output: Tensor) -> Any:
        if self.idle:
            return None
        return output + self._delta("value", inputs[0]).to(output.dtype)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *arguments: Any,
        attn_mask: Tensor | None = None,
        need_weights: bool = True,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Stand in for ``MultiheadAttention.forward`` in self-attention.

        :raises ValueError: with adapters, when weights are asked for or padding is
            masked.
        """
        attention: Any = self._attention[0]
        if self.idle:
            plain = type(attention).forward
            options |= {"attn_mask": attn_mask, "need_weights": need_weights}
            return plain(attention, query, key, value, *arguments, **options)
        if arguments or need_weights or options.get("key_padding_mask") is not None:
            raise ValueError(
                "LoRA stands in for self-attention without weights and padding mask."
            )
        x = query if attention.batch_first else query.transpose(0, 1)
        size, length, width = x.shape
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(
            3, dim=-1
        )
        q = q + self._delta("query", x).to(q.dtype)
        v = v + self._delta("value", x).to(v.dtype)
        q, k, v = (
            part.reshape(size, length, attention.num_heads, -1).transpose(1, 2)
            for part in (q, k, v)
        )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # True means "leave out" there and "keep" here
        elif attn_mask is not None:
            attn_mask = attn_mask.to(q.dtype)
        dropout = attention.dropout if attention.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout)
        out = attention.out_proj(mixed.transpose(1, 2).reshape(size, length, width))
        return (out if attention.batch_first else out.transpose(0, 1)), None

    def detach_hooks(self) -> None:
        """Give the attention its own forward back."""
        for handle in self.handles:
            handle.remove()
        vars(self._attention[0]).pop("forward", None)


class LanguageAdapterSet(nn.Module):
    """All language adapters of a model; ``model.language_adapters``.

    Languages are integer codes. Texts of a code without adapters pass the base tower.
    Before each training experience, ``adaptation`` adds adapters for its languages
    and freezes all others.

    :param parts: the adapters of the blocks, which are children of these.
    :param facts: settings, plain data.
    """

    def __init__(self, parts: Iterable[_Routed], facts: dict[str, Any]) -> None:
        super().__init__()
        # Registered in the blocks, where they keep the tower's names together.
        self._parts = list(parts)
        self.facts = facts

    @property
    def codes(self) -> tuple[int, ...]:
        """Codes of the languages that have adapters, in order of arrival."""
        return tuple(int(code) for code in self._parts[0].languages)

    def add_language(self, code: int) -> None:
        """Make adapters for a language; nothing happens if it has some.

        :param code: integer >= 0.
        :raises ValueError: for another code.
        """
        code = as_size(code, "The language code", least=0)
        for part in self._parts:
            part.add(code, self._anchor())

    def _anchor(self) -> Tensor:
        part: Any = self._parts[0]
        if isinstance(part, LanguageBottleneck):
            return next(part._norm[0].parameters())
        return next(part._attention[0].parameters())

    def train_languages(self, codes: Iterable[int]) -> None:
        """Let the adapters of these languages train, and freeze the others."""
        chosen = {str(code) for code in codes}
        for part in self._parts:
            for code, module in part.languages.items():
                module.requires_grad_(code in chosen)

    def adaptation(self, experience: Any) -> None:
        """Make and choose adapters for the languages of an experience.

        :param experience: with ``language_code``, or data with the fact ``language``.
        :raises ValueError: if it has neither.
        """
        codes = _codes_of(experience)
        for code in codes:
            self.add_language(code)
        self.train_languages(codes)

    def set_languages(self, codes: int | Tensor | None) -> None:
        """Choose the language of the texts that are encoded from now on.

        :param codes: one code for all, one per text ``(N,)``, or None for the base
            tower. Codes without adapters mean the base tower.
        """
        known = set(self.codes)
        route: int | Tensor = BASE
        if isinstance(codes, Tensor):
            found = torch.unique(codes).tolist()
            if len(found) == 1:
                route = found[0] if found[0] in known else BASE
            elif found:
                route = codes.clone()
                for code in found:
                    if code not in known:
                        route[codes == code] = BASE
        elif codes is not None and int(codes) in known:
            route = int(codes)
        for part in self._parts:
            part.route = route

    @contextmanager
    def languages(self, codes: int | Tensor | None) -> Iterator[None]:
        """Choose languages inside a ``with`` block, then the ones before."""
        before = self._parts[0].route
        self.set_languages(codes)
        try:
            yield
        finally:
            for part in self._parts:
                part.route = before

    def restore_trainable(self) -> None:
        """Leave the adapters as they are: :meth:`adaptation` chooses."""

    def growth_state(self) -> dict[str, Any]:
        """Return which languages have adapters."""
        return {"codes": list(self.codes)}

    def load_growth_state(self, state: dict[str, Any]) -> None:
        """Make adapters for the languages of a stored model."""
        for code in state["codes"]:
            self.add_language(code)

    def remove(self, model: nn.Module) -> None:
        """Take all adapters out of a model.

        :param model: the one they were attached to.
        """
        for part in self._parts:
            part.detach_hooks()  # type: ignore[operator]
        for module in list(model.modules()):
            if CHILD in module._modules:
                delattr(module, CHILD)
        model.register_module("language_adapters", None)


def attach_language_adapters(
    model: Any,
    kind: str = "mla",
    *,
    bottleneck: int | None = None,
    rank: int = 8,
    alpha: float = 8.0,
) -> LanguageAdapterSet:
    """Prepare a model's text tower for adapters per language.

    Until a language is added and chosen, the model computes what it did, bit for
    bit, and keeps its parameter names.

    :param model: a :class:`DualEncoder` whose text tower lists its blocks.
    :param kind: ``"mla"``, a bottleneck behind each perceptron, or ``"lora"``,
        low-rank updates of queries and values.
    :param bottleneck: width of the bottleneck; default half the tower's.
    :param rank: of the updates.
    :param alpha: updates are multiplied by ``alpha / rank``.
    :return: the set, also ``model.language_adapters``.
    :raises ValueError: if the model has language adapters, or a value is unknown
        or not positive.
    """
    require_choice("kind", kind, KINDS)
    if getattr(model, "language_adapters", None) is not None:
        raise ValueError("The model has language adapters; remove() them first.")
    rank = as_size(rank, "rank")
    if bottleneck is not None:
        bottleneck = as_size(bottleneck, "bottleneck")
    alpha = as_finite(alpha, "alpha", above=0)
    parts: list[_Routed] = []
    for block in model.blocks("text"):
        part: _Routed
        if kind == "mla":
            part = LanguageBottleneck(block, bottleneck or max(block.width // 2, 1))
        else:
            part = LanguageLoRA(block, rank, alpha)
        block.module.add_module(CHILD, part)
        parts.append(part)
    facts = {"kind": kind, "bottleneck": bottleneck, "rank": rank, "alpha": alpha}
    model.language_adapters = LanguageAdapterSet(parts, facts)
    return model.language_adapters


def _codes_of(experience: Any) -> list[int]:
    own = getattr(experience, "language_code", None)
    if own is not None:
        return [int(own)]
    column = getattr(getattr(experience, "dataset", None), "language", None)
    if column is None:
        raise ValueError(
            "The experience has no language_code and its data no language; make the "
            "stream with multilingual_benchmark."
        )
    return sorted({int(code) for code in column})
