"""A token table that gets rows for new languages while all else stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.common.checks import (
    as_finite,
    as_integer,
    as_size,
    require_choice,
    require_indices,
    require_same,
    require_some,
    require_type,
)
from avalanche_clip.common.grown import overlay
from avalanche_clip.models.text import vocabulary_storage
from avalanche_clip.models.text.growing import GrowingTokenizer
from avalanche_clip.models.text.teir import draw_normal_, teir_init_

INITS = ("teir", "normal")


class ExpandableTokenEmbedding(nn.Module):
    """Replace the ``nn.Embedding`` of a text tower by one that can grow.

    The parameter ``weight`` ``(V, d)`` is the one of the replaced module, under
    the same name, so weight files stay loadable; files with another number of
    rows resize the table. Growing copies the old rows bit for bit.

    While a task is trained only the rows it uses need to be in the optimiser:
    :meth:`activate` moves them into a compact parameter ``active`` ``(A, d)``
    and freezes ``weight``; :meth:`settle` writes them back. Look-ups see the
    current values at any time.

    :param embedding: the module to replace; its parameter is taken over.
    :param tokenizer: gives the number of rows when the model is adapted to an
        experience; None: the table grows by :meth:`expand` only.
    :param init: ``"teir"``: new rows are drawn like all present ones
        (:func:`teir_init_`); ``"normal"``: from N(0, ``std``).
    :param std: standard deviation of ``"normal"``.
    :param seed: of the random rows; each experience has its own numbers.
    :raises ValueError: for an unknown ``init``, or an embedding with ``max_norm``,
        ``scale_grad_by_freq`` or sparse gradients.
    """

    weight: nn.Parameter
    active: nn.Parameter | None

    def __init__(
        self,
        embedding: nn.Embedding,
        tokenizer: Any = None,
        *,
        init: str = "teir",
        std: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_choice("init", init, INITS)
        std = as_finite(std, "std", low=0)
        unknown = ("max_norm", "scale_grad_by_freq", "sparse")
        odd = [name for name in unknown if getattr(embedding, name)]
        if odd:
            raise ValueError(
                f"The embedding was made with {', '.join(odd)}, which a growing table "
                "does not keep; build the text tower without."
            )
        self.weight = cast(nn.Parameter, embedding.weight)
        self.register_parameter("active", None)
        self.padding_idx = embedding.padding_idx
        self.tokenizer = tokenizer
        self.init = init
        self.std = std
        self.seed = as_integer(seed, "seed")
        #: added to the number of an experience to seed its new rows, where several
        #: experiences have the same
        self.draws = 0
        #: number of rows before any growth
        self.base_rows = len(embedding.weight)
        #: tasks that used each row so far, int32 ``(V,)``, on the CPU
        self.usage = torch.zeros(self.base_rows, dtype=torch.int32)
        #: factor of all rows outside ``active`` (decay that is not yet applied)
        self.factor = 1.0
        self._rows: Tensor | None = None
        self._position: Tensor | None = None
        self._planned: Callable[[], Tensor | None] | None = None

    # ------------------------------------------------------------ description
    @property
    def num_embeddings(self) -> int:
        """Number of rows V."""
        return int(self.weight.shape[0])

    @property
    def embedding_dim(self) -> int:
        """Width d of the table."""
        return int(self.weight.shape[1])

    @property
    def active_rows(self) -> Tensor | None:
        """Ids of the rows in ``active``, ascending; None outside a task."""
        return self._rows

    @property
    def trained(self) -> nn.Parameter:
        """The parameter that an optimiser holds: ``active`` or ``weight``."""
        return self.weight if self.active is None else self.active

    @torch.no_grad()
    def table(self) -> Tensor:
        """Return a copy of the whole table with its current values, ``(V, d)``."""
        full = self.weight.detach().clone()
        if self.active is not None:
            self._fill(full)
        return full

    def _fill(self, full: Tensor) -> None:
        """Bring the rows of a table up to date, in place."""
        assert self.active is not None and self._rows is not None
        if self.factor != 1.0:
            full.mul_(self.factor)
        full[self._rows] = self.active.detach()

    def forward(self, ids: Tensor) -> Tensor:
        """Look rows up.

        :param ids: integers, any shape.
        :return: float, shape of ``ids`` plus ``(d,)``.
        """
        if self.active is None:
            return F.embedding(ids, self.weight, self.padding_idx)
        assert self._position is not None
        rest = F.embedding(ids, self.weight, self.padding_idx)
        if self.factor != 1.0:
            rest = rest * self.factor
        at = self._position[ids]
        trained = F.embedding(at.clamp_min(0), self.active, self._active_pad)
        return torch.where((at >= 0).unsqueeze(-1), trained, rest)

    # ---------------------------------------------------------------- growing
    def adaptation(self, experience: Any = None) -> None:
        """Grow to the tokenizer's size; activate the rows that were planned.

        Does nothing in evaluation mode.

        :param experience: its ``current_experience`` seeds the new rows.
        :raises RuntimeError: if the table has rows that the tokenizer does not
            know.
        """
        if not self.training:
            return
        if self.tokenizer is not None:
            rows = int(self.tokenizer.vocab_size)
            if rows < self.num_embeddings:
                raise RuntimeError(
                    f"The token table has {self.num_embeddings} rows, the tokenizer "
                    f"{rows} ids: weights of a grown table were loaded without its "
                    "vocabulary. Use save_vocabulary and load_vocabulary."
                )
            task = int(getattr(experience, "current_experience", 0) or 0)
            self.expand(rows, seeded(self.seed, task + self.draws))
        if self._planned is not None:
            choose, self._planned = self._planned, None
            chosen = choose()
            if chosen is not None:
                self.activate(chosen)

    def plan(self, choose: Callable[[], Tensor | None] | None) -> None:
        """Let the next adaptation activate rows, once the table has grown.

        :param choose: returns ids, or None to train the whole table.
        """
        self._planned = choose

    @torch.no_grad()
    def expand(self, rows: int, generator: torch.Generator | None = None) -> None:
        """Append new rows; old rows stay as they are, bit for bit.

        The parameter object is replaced, so rebuild optimisers afterwards.

        :param rows: new number of rows; not more than now: nothing happens.
        :param generator: of the random numbers of the new rows.
        """
        rows = as_size(rows, "rows")
        count = self.num_embeddings
        if rows <= count:
            return
        self.settle()
        self._resize(rows)
        old, fresh = self.weight.detach().tensor_split([count])
        if self.init == "teir":
            teir_init_(fresh, old, generator)
        else:
            draw_normal_(fresh, 0.0, self.std, generator)

    # ------------------------------------------------------------ active rows
    @torch.no_grad()
    def activate(self, rows: Tensor) -> None:
        """Train these rows only: gather them in the parameter ``active``.

        :param rows: ids, distinct.
        :raises ValueError: if there is none, or an id is repeated or unknown.
        """
        self.settle()
        rows = rows.detach().to(self.weight.device, torch.int64).unique()
        require_some(rows, "active rows")
        require_indices(rows, self.num_embeddings, "The list of active rows")
        self._point(rows)
        self.active = nn.Parameter(self.weight.detach()[rows])
        self.weight.requires_grad_(False)

    def _point(self, rows: Tensor) -> None:
        position = torch.full((len(self.weight),), -1, device=rows.device)
        position[rows] = torch.arange(len(rows), device=rows.device)
        self._rows, self._position = rows, position
        place = -1 if self.padding_idx is None else int(position[self.padding_idx])
        self._active_pad = None if place < 0 else place

    @torch.no_grad()
    def settle(self) -> None:
        """Write the active rows back; ``weight`` is the trained parameter again."""
        if self.active is None:
            return
        self._fill(self.weight)
        self.weight.requires_grad_(True)
        self.active = self._rows = self._position = None
        self.factor = 1.0

    # ---------------------------------------------------------------- storage
    def growth_state(self) -> dict[str, Any]:
        """Return sizes, active rows, counts and the tokenizer as plain data."""
        grows = isinstance(self.tokenizer, GrowingTokenizer)
        return {
            "rows": self.num_embeddings,
            "base_rows": self.base_rows,
            "active": None if self._rows is None else self._rows.cpu().clone(),
            "factor": self.factor,
            "usage": self.usage.clone(),
            "tokenizer": self.tokenizer.state_dict() if grows else None,
        }

    def load_growth_state(self, state: dict[str, Any]) -> None:
        """Take the sizes of a stored table; its values come with the weights.

        :param state: from :meth:`growth_state`.
        :raises ValueError: if the stored table began with another number of rows
            or another vocabulary.
        """
        what, do = "The number of rows at first", "build the model that was stored"
        require_same(what, state["base_rows"], self.base_rows, do)
        stored = state["tokenizer"]
        if stored is not None and self.tokenizer is not None:
            self.tokenizer.load_state_dict(stored)
        self.settle()
        self._resize(int(state["rows"]))
        self.usage = state["usage"].to("cpu", torch.int32).clone()
        if state["active"] is not None:
            self.activate(state["active"])
        self.factor = float(state["factor"])

    @torch.no_grad()
    def _resize(self, rows: int) -> None:
        """Let the table have so many rows; new ones are 0."""
        old = self.weight
        if rows != self.num_embeddings:
            table = overlay(old.new_zeros(rows, old.shape[1]), old.detach())
            self.weight = nn.Parameter(table, requires_grad=old.requires_grad)
            self.usage = overlay(self.usage.new_zeros(rows), self.usage)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.ndim == 2:
            if f"{prefix}active" not in state_dict:
                self.settle()
            if weight.shape[0] != self.num_embeddings:
                self.settle()
                self._resize(weight.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        # no buffers: data-parallel training would send them in every step
        if self._rows is not None and self._position is not None:
            self._rows, self._position = fn(self._rows), fn(self._position)
        return self

    def extra_repr(self) -> str:
        """Describe the table in one line."""
        active = "" if self._rows is None else f", active={len(self._rows)}"
        return f"{self.num_embeddings}, {self.embedding_dim}{active}"


def seeded(seed: int, task: int) -> torch.Generator:
    """Generator of the new rows of a task, on the CPU, so on every device alike."""
    number = (seed * 1_000_003 + task * 7_919 + 12_345) % (2**63)
    return torch.Generator().manual_seed(number)


def find_token_embedding(model: nn.Module) -> ExpandableTokenEmbedding | None:
    """Return the growing token table of a model, or None."""
    modules = model.modules()
    return next((m for m in modules if isinstance(m, ExpandableTokenEmbedding)), None)


def attach_token_embedding(
    model: Any,
    *,
    tokenizer: Any = None,
    name: str | None = None,
    init: str = "teir",
    std: float = 0.02,
    seed: int = 0,
    **options: Any,
) -> ExpandableTokenEmbedding:
    """Make the vocabulary of a dual encoder growable, in place.

    ``model.tokenizer`` becomes a :class:`GrowingTokenizer` and the token table of
    the text tower an :class:`ExpandableTokenEmbedding`. Features stay as they
    are, bit for bit. Attach before :func:`prepare_benchmark`.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`, or any model with
        ``tokenizer`` when ``name`` is given.
    :param tokenizer: used as it is instead of a growing copy of the model's.
    :param name: of the ``nn.Embedding`` in the model; default that of the text
        tower (open_clip, or the input embeddings of transformers).
    :param init: see :class:`ExpandableTokenEmbedding`.
    :param std: see there.
    :param seed: see there.
    :param options: of :class:`GrowingTokenizer` (``scope``, ``pretokenizer``, ...).
    :return: the new table.
    :raises ValueError: if the model has one already, or has no token table.
    """
    if find_token_embedding(model) is not None:
        raise ValueError("The model has a growing token table already; use that one.")
    name = _table_name(model) if name is None else name
    parent = model.get_submodule(name.rpartition(".")[0])
    table = model.get_submodule(name)
    give = "the name of the token table, an nn.Embedding"
    require_type(table, nn.Embedding, name, give, error=ValueError)
    if tokenizer is None:
        own = model.tokenizer
        grows = isinstance(own, GrowingTokenizer)
        tokenizer = own if grows and not options else GrowingTokenizer(own, **options)
    if isinstance(tokenizer, GrowingTokenizer):
        tokenizer.reserve(table.num_embeddings)
    if table.weight.dtype not in (torch.float32, torch.float64):
        table.weight.data = table.weight.data.float()
    grown = ExpandableTokenEmbedding(table, tokenizer, init=init, std=std, seed=seed)
    grown.train(table.training)
    setattr(parent, name.rpartition(".")[2], grown)
    model.tokenizer = tokenizer
    return grown


def _table_name(model: Any) -> str:
    """Find the token table of a text tower."""
    clip = getattr(model, "clip", None)
    parts = [getattr(clip, name, None) for name in ("text_model", "text")]
    tower = next((part for part in parts if isinstance(part, nn.Module)), clip)
    found = getattr(tower, "token_embedding", None)
    owners: list[Any] = [tower, getattr(tower, "transformer", None)]
    for owner in owners:
        if found is None and hasattr(owner, "get_input_embeddings"):
            found = owner.get_input_embeddings()
    for name, module in model.named_modules():
        if module is found and found is not None:
            return name
    raise ValueError(
        f"No token table was found in {type(model).__name__}; give its name, as in "
        "model.named_modules()."
    )


def save_vocabulary(model: nn.Module, path: str | Path) -> Path:
    """Write the grown vocabulary of a model: tokenizer, counts and table.

    :param model: with a growing token table.
    :param path: file to write, replaced at once; the content is safetensors with a
        checksum, whatever its name.
    :return: the path.
    :raises ValueError: if the model has no growing table.
    """
    table = _required(model)
    state = {**table.growth_state(), "active": None, "factor": 1.0}
    state["table"] = table.table().cpu()
    vocabulary_storage.write(state, path)
    return Path(path)


def load_vocabulary(
    model: nn.Module, path: str | Path, *, verify: bool = True
) -> ExpandableTokenEmbedding:
    """Read what :func:`save_vocabulary` wrote into a model of the base size.

    :param model: the architecture that was saved; the vocabulary is attached
        where it is not yet.
    :param path: the file.
    :param verify: compare the checksum of the table, even of a large one.
    :return: the growing table.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged, or belongs to another base vocabulary
        or width.
    """
    state = vocabulary_storage.read(path, verify=verify)
    table = find_token_embedding(model) or attach_token_embedding(model)
    width, do = state["table"].shape[1], "build the model that was saved"
    with vocabulary_storage.naming(path, "the vocabulary of this model"):
        require_same("The width of the table", width, table.embedding_dim, do)
        table.load_growth_state(state)
    with torch.no_grad():
        table.weight.copy_(state["table"])
    return table


def train_tokens_only(model: nn.Module, also: tuple[str, ...] = ()) -> None:
    """Freeze every parameter but the token table.

    :param model: with a growing token table.
    :param also: beginnings of parameter names that train too.
    :raises ValueError: if the model has no growing table.
    """
    table = _required(model)
    freeze = getattr(model, "freeze", None)
    if callable(freeze):
        freeze()
    trained = {id(table.trained)}
    for name, parameter in model.named_parameters():
        chosen = id(parameter) in trained or (bool(also) and name.startswith(also))
        if chosen and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
        parameter.requires_grad_(chosen)


def _required(model: nn.Module) -> ExpandableTokenEmbedding:
    table = find_token_embedding(model)
    if table is None:
        raise ValueError(
            "The model has no growing token table; call attach_token_embedding(model)."
        )
    return table
