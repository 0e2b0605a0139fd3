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
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_integers, require_choice, require_type
from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.peft.routes import SKIP, Routes, RowIds

TOWERS = ("image", "text")


class Call(NamedTuple):
    """A call of a block's attention, or perceptron.

    :param part: ``"attn"`` or ``"mlp"``.
    :param plain: the module's ``forward`` without this branch.
    :param args: arguments by position.
    :param kwargs: arguments by name.
    """

    part: str
    plain: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        """Make it."""
        return self.plain(*self.args, **self.kwargs)

    @property
    def x(self) -> Tensor:
        """The tokens."""
        given = (*self.args, *self.kwargs.values())
        return next(value for value in given if isinstance(value, Tensor))

    def some(self, rows: Tensor, dim: int) -> Call:
        """Return the call for some rows of the batch, which is axis ``dim``."""
        x = self.x
        few, size = x.index_select(dim, rows), x.shape[dim]

        def take(value: Any) -> Any:
            if value is x:
                return few
            if not isinstance(value, Tensor) or value.ndim < 3:
                return value
            if value.shape == x.shape:
                return value.index_select(dim, rows)
            if value.shape[0] == 1 or value.shape[0] % size:
                return value  # a mask for all rows
            per_row = value.view(size, -1, *value.shape[1:])
            return per_row.index_select(0, rows).flatten(0, 1)

        args = tuple(take(value) for value in self.args)
        return Call(
            self.part, self.plain, args, {k: take(v) for k, v in self.kwargs.items()}
        )


class _Forward:
    """The ``forward`` of a module whose calls pass branches, the last one first."""

    def __init__(self, module: nn.Module, part: str) -> None:
        self.module, self.part = module, part
        self.before = vars(module).get("forward")
        self.branches: list[Branch] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.within(len(self.branches), *args, **kwargs)

    def within(self, count: int, *args: Any, **kwargs: Any) -> Any:
        """Pass the first branches only."""
        if count:
            plain = partial(self.within, count - 1)
            return self.branches[count - 1].call(Call(self.part, plain, args, kwargs))
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def remove(self, branch: Branch) -> None:
        """Let calls pass a branch no more."""
        self.branches.remove(branch)
        if not self.branches:
            del self.module.forward
            if self.before is not None:
                self.module.forward = self.before  # type: ignore[method-assign]


def first_of(output: Any) -> Tensor:
    """Return what a module gives, of a tuple the first."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, found: Tensor) -> Any:
    """Return what a module gives with another first."""
    return (found, *output[1:]) if isinstance(output, tuple) else found


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
        self._handles: list[Any] = [view.norm1.register_forward_pre_hook(self._see)]
        self._stands: list[_Forward] = []
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

    def merge(self, key: int, share: float = 1.0) -> None:
        """Put the update of an id, or a share of it, into the weights of the block."""
        self.check_merge()

    def detach(self) -> None:
        """Leave the block as it was."""
        for handle in self._handles:
            handle.remove()
        for stand in self._stands:
            stand.remove(self)
        delattr(self.view.module, self.CHILD)

    def _see(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.routes.see(args[0])

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
        found = first = first_of(output)
        ids = self.routes.of(first.shape[self._rows], *self.ROWS)
        if kept is not None and ids != SKIP:
            x = self._swap(self.reads(kept, first))
            found = first + self._swap(self.delta(x, ids)).to(first.dtype)
        self.routes.mark(found)
        return with_first(output, found)

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
    def stand_in(
        self, part: str, innermost: bool = False, view: BlockView | None = None
    ) -> None:
        """Let calls of the attention, or the perceptron, pass :meth:`around`.

        :param part: ``"attn"`` or ``"mlp"``.
        :param innermost: behind branches that stand there already.
        :param view: block that they belong to; default that of the branch.
        """
        module: Any = getattr(view or self.view, part)
        if not isinstance(vars(module).get("forward"), _Forward):
            module.forward = _Forward(module, part)
        stand: _Forward = module.forward
        stand.branches.insert(0 if innermost else len(stand.branches), self)
        self._stands.append(stand)

    def call(self, call: Call) -> Any:
        """Make a call that passes the branch, for rows of any ids."""
        x, dim = call.x, self._rows
        ids = self.routes.of(x.shape[dim], *self.ROWS)
        if isinstance(ids, int):
            found = self._call(ids, call)
        elif call.kwargs.get("key_padding_mask") is not None:
            raise ValueError("Rows of several ids cannot have a key_padding_mask.")
        else:
            out: Any = None
            for key, rows in ids.rows(x.device):
                found = self._call(key, call.some(rows, dim))
                first = first_of(found)
                if out is None:
                    size = list(first.shape)
                    size[dim] = x.shape[dim]
                    out = first.new_zeros(size)
                out = out.index_copy(dim, rows, first.to(out.dtype))
            found = (out, None) if isinstance(found, tuple) else out
        self.routes.mark(first_of(found))
        return found

    def _call(self, key: int, call: Call) -> Any:
        return call() if key == SKIP else self.around(key, call)

    def around(self, key: int, call: Call) -> Any:
        """Make a call for rows of one id, not -1."""
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

    def delta(self, x: Tensor, ids: int | RowIds) -> Tensor:
        """Apply to each row the parts of its id; zeros for rows of the plain block."""
        if isinstance(ids, int):
            return self.table[str(ids)](x)
        out = torch.zeros_like(x)
        for key, rows in ids.rows(x.device):
            if key != SKIP:
                found = self.table[str(key)](x[rows]).to(out.dtype)
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
    if model.grad_checkpointing:
        raise ValueError(
            "Nothing can be attached while activations are computed again; call"
            " model.set_grad_checkpointing(False) before."
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
