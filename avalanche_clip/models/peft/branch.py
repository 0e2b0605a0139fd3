"""What stands beside a block: hooks, ids of rows, and one table of parts per id.

A branch is a child of its block, so that all parameters of the block keep their
names, and acts at named places of a :class:`BlockView`:

- ``before_attention``: the input of the block (a hook before the block);
- ``attention_out``, ``mlp_out``: something is added to the output of one half;
- ``qkv``: the attention, or the perceptron, is called through the branch.

Hooks are bound methods of the branch, so that deep copies have their own. Where no
row has an id but -1 nothing is computed, and the block gives what it gave bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_integers, require_choice, require_type
from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.peft.routes import SKIP, Routes, RowIds

TOWERS = ("image", "text")
_CALLS = {"attn": "attend", "mlp": "perceive"}


def set_trainable(module: nn.Module, trainable: bool) -> None:
    """Let the parameters of a module train, or stop it and drop gradients."""
    for parameter in module.parameters():
        parameter.requires_grad_(trainable)
        if not trainable:
            # an optimiser would apply what is left
            parameter.grad = None


class Branch(nn.Module):
    """Something beside one block; parameters and buffers only.

    :cvar CHILD: its name in the block.
    :cvar TABLE: name of its parts per id among its children.
    :cvar ROWS: what ids and rows are called in messages.
    """

    CHILD: ClassVar[str] = "branch"
    TABLE: ClassVar[str] = "entries"
    ROWS: ClassVar[tuple[str, str]] = ("ids", "rows")
    view: BlockView
    routes: Routes

    def connect(self, view: BlockView, routes: Routes) -> None:
        """Become a child of a block and hook into it.

        :param view: the block.
        :param routes: ids of the tower's rows, shared by its blocks.
        """
        self.view, self.routes = view, routes
        self._handles: list[Any] = []
        self._before: dict[str, Any] = {}
        self._kept: Tensor | None = None
        view.module.add_module(self.CHILD, self)
        self.hook()

    def hook(self) -> None:
        """Register the hooks; called once, at the end of :meth:`connect`."""
        raise NotImplementedError

    def check_merge(self) -> None:
        """Raise ValueError unless :meth:`merge` changes nothing that is computed."""
        raise ValueError(
            f"{type(self).__name__} is no linear update of a weight, so it cannot be"
            " merged; keep it attached, or detach() it."
        )

    def merge(self, key: int) -> None:
        """Put the update of an id into the weights of the block."""
        self.check_merge()

    def detach(self) -> None:
        """Leave the block as it was."""
        for handle in self._handles:
            handle.remove()
        for part in list(self._before):
            self._step_aside(part)
        delattr(self.view.module, self.CHILD)

    # ------------------------------------------------- added to one half's output
    def add_at(self, out: nn.Module | None, reads: nn.Module, *, normed: bool) -> None:
        """Add :meth:`delta` to what a module gives.

        :param out: last module of a half of the block.
        :param reads: the norm at the beginning of this half.
        :param normed: whether the norm's output (True) or input is kept for the
            branch to read.
        """
        assert out is not None
        keep: Any = (
            reads.register_forward_hook(self._keep_output)
            if normed
            else reads.register_forward_pre_hook(self._keep_input)
        )
        self._handles += [keep, out.register_forward_hook(self._add)]

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._kept = args[0]

    def _keep_output(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._kept = output

    def _add(self, module: nn.Module, args: Any, output: Any) -> Any:
        kept, self._kept = self._kept, None
        first = output[0] if isinstance(output, tuple) else output
        ids = self.routes.of(first.shape[self._rows], *self.ROWS)
        if kept is None or (isinstance(ids, int) and ids == SKIP):
            return None
        x = self._swap(self.reads(kept, first))
        found = first + self._swap(self.delta(x, ids)).to(first.dtype)
        return (found, *output[1:]) if isinstance(output, tuple) else found

    def reads(self, kept: Tensor, output: Tensor) -> Tensor:
        """Return what the branch reads; default what was kept of the norm."""
        return kept

    def delta(self, x: Tensor, ids: int | RowIds) -> Tensor:
        """Return what is added.

        :param x: what the branch reads, ``(B, L, D)``.
        :param ids: at least one of them is not -1.
        """
        raise NotImplementedError

    @property
    def _rows(self) -> int:
        return 0 if self.view.batch_first else 1

    def _swap(self, x: Tensor) -> Tensor:
        return x if self.view.batch_first else x.transpose(0, 1)

    # ------------------------------------------------- in place of a module's call
    def stand_in(self, part: str, innermost: bool = False) -> None:
        """Let calls of the attention, or the perceptron, pass :meth:`around`.

        :param part: ``"attn"`` or ``"mlp"``.
        :param innermost: behind branches that stand there already.
        """
        module: Any = getattr(self.view, part)
        now, method = vars(module).get("forward"), getattr(self, _CALLS[part])
        self._before[part] = None if innermost and now is not None else now
        if innermost and now is not None:
            _last(now, part)._before[part] = method
        else:
            module.forward = method

    def _step_aside(self, part: str) -> None:
        module, after = getattr(self.view, part), self._before.pop(part)
        now = vars(module)["forward"]
        if now.__self__ is not self:
            while now.__self__._before[part].__self__ is not self:
                now = now.__self__._before[part]
            now.__self__._before[part] = after
        elif after is None:
            del vars(module)["forward"]
        else:
            module.forward = after

    def attend(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the attention's ``forward``."""
        return self._through("attn", args, kwargs)

    def perceive(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the perceptron's ``forward``."""
        return self._through("mlp", args, kwargs)

    def plain(self, part: str) -> Callable[..., Any]:
        """The call without this branch."""
        module = getattr(self.view, part)
        return self._before[part] or partial(type(module).forward, module)

    def _through(self, part: str, args: Any, kwargs: dict[str, Any]) -> Any:
        plain = self.plain(part)
        x = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        dim = self._rows
        ids = self.routes.of(x.shape[dim], *self.ROWS)
        if isinstance(ids, int):
            if ids == SKIP:
                return plain(*args, **kwargs)
            return self.around(part, ids, plain, args, kwargs)
        if kwargs.get("key_padding_mask") is not None:
            raise ValueError("Rows of several ids cannot have a key_padding_mask.")
        out: Any = None
        for key in ids.present:
            rows = (ids.ids.to(x.device) == key).nonzero().squeeze(1)
            take = partial(
                _take, x=x, few=x.index_select(dim, rows), rows=rows, dim=dim
            )
            some = [take(v) for v in args], {k: take(v) for k, v in kwargs.items()}
            if key == SKIP:
                found = plain(*some[0], **some[1])
            else:
                found = self.around(part, key, plain, *some)
            first = found[0] if isinstance(found, tuple) else found
            if out is None:
                size = list(first.shape)
                size[dim] = x.shape[dim]
                out = first.new_zeros(size)
            out = out.index_copy(dim, rows, first.to(out.dtype))
        return (out, None) if isinstance(found, tuple) else out

    def around(
        self,
        part: str,
        key: int,
        plain: Callable[..., Any],
        args: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        """Call a module for rows of one id.

        :param part: ``"attn"`` or ``"mlp"``.
        :param key: the id, not -1.
        :param plain: the call without this branch.
        """
        raise NotImplementedError

    # -------------------------------------------------------------------- storage
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Leave everything alone for the state of a plain model."""
        if prefix and not any(key.startswith(prefix) for key in state_dict):
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def shapes(self, keys: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state of a branch with these ids."""
        found = {n: tuple(t.shape) for n, t in self.state_dict().items()}
        table = {n: s for n, s in found.items() if n.startswith(f"{self.TABLE}.")}
        first = min((n.split(".")[1] for n in table), default="")
        start = f"{self.TABLE}.{first}."
        result = {n: s for n, s in found.items() if n not in table}
        for key in keys:
            for name, shape in table.items():
                if name.startswith(start):
                    result[f"{self.TABLE}.{key}.{name[len(start) :]}"] = shape
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _last(call: Any, part: str) -> Branch:
    while call.__self__._before[part] is not None:
        call = call.__self__._before[part]
    return call.__self__


def _take(value: Any, *, x: Tensor, few: Tensor, rows: Tensor, dim: int) -> Any:
    """Some rows of an argument: of activations, or of masks with a part per row."""
    if value is x:
        return few
    if not isinstance(value, Tensor) or value.ndim < 3:
        return value
    if value.shape == x.shape:
        return value.index_select(dim, rows)
    size = x.shape[dim]
    if value.shape[0] == 1 or value.shape[0] % size:
        return value
    per_row = value.view(size, -1, *value.shape[1:])
    return per_row.index_select(0, rows).flatten(0, 1)


class RoutedBranch(Branch):
    """A branch that has parts of its own for each id."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(self.TABLE, nn.ModuleDict())

    @property
    def table(self) -> nn.ModuleDict:
        """Parts by id, as text."""
        return self._modules[self.TABLE]  # type: ignore[return-value]

    @property
    def keys(self) -> tuple[int, ...]:
        """Ids that have parts, in order of arrival."""
        return tuple(int(key) for key in self.table)

    def make(self) -> nn.Module:
        """Return the parts of a new id."""
        raise NotImplementedError

    def add(self, key: int) -> None:
        """Make the parts of an id; nothing happens if it has some."""
        if str(key) not in self.table:
            device = self.view.norm2.weight.device
            parts = self.make().to(device)  # type: ignore[arg-type]
            self.table[str(key)] = parts.train(self.training)

    def mix(
        self, x: Tensor, ids: int | RowIds, apply: Callable[[Any, Tensor], Tensor]
    ) -> Tensor:
        """Apply to each row of ``x`` ``(B, L, D)`` the parts of its id.

        :param apply: called with parts and their rows.
        :return: same shape; zeros for rows of the plain block.
        """
        if isinstance(ids, int):
            return apply(self.table[str(ids)], x)
        out = torch.zeros_like(x)
        for key in ids.present:
            if key != SKIP:
                rows = (ids.ids.to(x.device) == key).nonzero().squeeze(1)
                found = apply(self.table[str(key)], x[rows]).to(out.dtype)
                out = out.index_copy(0, rows, found)
        return out

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Make the parts that a state has."""
        start = f"{prefix}{self.TABLE}."
        for name in list(state_dict):
            if name.startswith(start):
                self.add(int(name[len(start) :].split(".")[0]))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def require_encoder(model: Any) -> None:
    """Raise ValueError unless a model is one that branches can be attached to."""
    if not isinstance(model, DualEncoder):
        raise ValueError(
            f"{type(model).__name__} has no residual blocks to attach adapters to; use"
            " a DualEncoder with transformer towers ('tiny-emoji-vit')."
        )


def require_flags(**given: Any) -> None:
    """Raise ValueError unless all options are True or False."""
    for name, value in given.items():
        require_type(value, bool, name, "True or False", error=ValueError)


def chosen_names(given: Any, what: str, allowed: Sequence[str]) -> list[str]:
    """List the names that an option chooses, each once.

    :param given: one name, or several.
    :param what: name of the option.
    :param allowed: what may be chosen.
    :raises ValueError: for unknown names, and for none.
    """
    names = [given] if isinstance(given, str) else given
    names = list(names) if isinstance(names, Iterable) else []
    for name in names:
        require_choice(what, name, allowed)
    if not names:
        raise ValueError(f"{what}={given!r} is empty; choose from {tuple(allowed)}.")
    return list(dict.fromkeys(names))


def chosen_blocks(
    model: DualEncoder, tower: str, blocks: Iterable[int] | None
) -> tuple[dict[str, list[BlockView]], dict[str, Any]]:
    """List some blocks of one or both towers, first to last.

    :param tower: ``"image"``, ``"text"`` or ``"both"``.
    :param blocks: their indices, from 0; None for all.
    :return: views per tower, and the choice as plain data.
    :raises ValueError: for a tower without residual blocks, and unknown indices.
    """
    require_encoder(model)
    require_choice("tower", tower, (*TOWERS, "both"))
    wanted = None if blocks is None else sorted(set(as_integers(blocks, "blocks")))
    views = {}
    for name in TOWERS if tower == "both" else (tower,):
        every = views[name] = model.blocks(name)
        if wanted is None:
            continue
        wrong = [number for number in wanted if not 0 <= number < len(every)]
        if wrong or not wanted:
            raise ValueError(
                f"blocks={wrong or wanted} are not in the {name} tower; it has the"
                f" blocks 0 to {len(every) - 1}."
            )
        views[name] = [every[number] for number in wanted]
    return views, {"tower": tower, "blocks": wanted}


def pairs(
    make: Callable[[BlockView], Branch], views: Mapping[str, Sequence[BlockView]]
) -> dict[str, list[tuple[Branch, BlockView]]]:
    """Make one branch per block, before anything is changed."""
    return {t: [(make(view), view) for view in own] for t, own in views.items()}
