"""Grow the vocabulary with each language, and hold old token rows still (TEIR).

Source: Yang et al., AAAI 2024 (CLL-CLIP with TEIR, arXiv 2401.17186) and the
released code, from which this differs where said below.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.batch import FieldCollate
from avalanche_clip.benchmarks.items.captions import (
    language_codes,
    language_of,
    read_captions,
)
from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.common.progress import progress
from avalanche_clip.models import (
    ExpandableTokenEmbedding,
    LearntVocabulary,
    VocabularyGrowth,
    attach_token_embedding,
    find_token_embedding,
    teir_scale,
    train_tokens_only,
)
from avalanche_clip.models.text.token_table import INITS
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.visits import Step, read_step, seed_number

logger = logging.getLogger(__name__)

CHOICES: dict[str, tuple[Any, ...]] = {
    "init": INITS,
    "regularize": ("gd", "g", "d", None),
    "scale_target": ("gradient", "update"),
    "active_rows": ("auto", True, False),
}
"""Setting -> its allowed values."""
ROW_WISE = ("Adam", "AdamW", "SGD", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad")
"""Optimisers whose step for one entry looks at no other entry."""


@dataclass(eq=False)
class TokenEmbeddingExpansionPlugin(MethodPlugin, supports_distributed=True):
    """Train the token table only, with new rows for each language.

    Before each experience a vocabulary is learnt on its captions and appended to
    the model's, the table grows, and every row gets the factor ``s_k`` of
    :func:`teir_scale`: 0 for special tokens and for rows that the captions do not
    use, ``1 / (1 + original + n_k)`` for the others. In each optimiser step, after
    clipping, weight decay and gradient of the row are multiplied by it. Rows with
    ``s_k = 0`` stay bit-identical.

    With active rows only the rows that the task uses, and the special ones, are
    in the optimiser. This gives the table that dense training gives, for
    optimisers that treat each entry alone and start anew for each experience.
    Decay of unused rows (``regularize`` None or ``"g"``) is then applied at the
    end as a product of all steps' factors.

    Memory: nothing beyond the table and, for active rows, one copy of them with
    their moments. Time: one pass over the captions per experience.

    :param vocab_size: tokens learnt per language, bytes and specials included.
    :param init: of new rows: ``"teir"`` or ``"normal"`` (N(0, 0.02)).
    :param regularize: ``"gd"``: factors act on gradient and decay (TEIR);
        ``"g"``: on the gradient, while all rows decay; ``"d"``: on the decay;
        None: plain training of the table.
    :param scale_target: ``"gradient"``: the gradient is scaled before Adam's
        moments, as published (Adam cancels a constant factor, so this mainly
        freezes rows); ``"update"``: the step itself is scaled.
    :param weight_decay: decoupled decay of the table, ``>= 0``.
    :param active_rows: True, False, or ``"auto"``: where it is exact, that is
        unless another plugin keeps something per weight (plugins without state
        or with ``keeps_per_weight_state = False`` do not), the optimiser is none of
        ``ROW_WISE``, or moments survive experiences.
    :param clip_after_mask: leave frozen rows out of the norm that is clipped;
        the source counts them.
    :param count_replay: rows that only replayed captions use may move too; these
        are captions pooled with the data, and those that a plugin with a method
        ``replayed_data(strategy)`` may draw.
    :param grow: False keeps the vocabulary as it is.
    :param oracle_vocabulary: captions of all languages, or what was learnt from
        them: added in the first experience, and nothing later.
    :param freeze: stop training everything else (not what other plugins or a
        strategy have registered as ``model.cross_modal``).
    :param tokenizer_options: of :class:`GrowingTokenizer`, when the model's
        vocabulary was not made growable before.
    :raises ValueError: for values outside these ranges.
    """

    changes_text_table = True

    vocab_size: int = 10_000
    init: str = "teir"
    regularize: str | None = "gd"
    scale_target: str = "gradient"
    weight_decay: float = 0.05
    active_rows: str | bool = "auto"
    clip_after_mask: bool = False
    count_replay: bool = False
    grow: bool = True
    oracle_vocabulary: LearntVocabulary | Iterable[str] | None = None
    freeze: bool = True
    tokenizer_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            require_choice(name, getattr(self, name), allowed)
        as_finite(self.weight_decay, "weight_decay", low=0)
        oracle = self.oracle_vocabulary
        if oracle is not None and not isinstance(oracle, LearntVocabulary):
            self.oracle_vocabulary = list(oracle)
        as_size(self.vocab_size, "vocab_size")
        if self.scale_target == "update" and "g" not in (self.regularize or ""):
            raise ValueError(
                "scale_target='update' scales the step instead of the gradient, which "
                f"regularize={self.regularize!r} does not scale; use 'gd' or 'g'."
            )
        super().__init__()
        self._growth: list[VocabularyGrowth] = []
        self._occurs: Tensor | None = None
        self._current: Tensor | None = None
        self._scale: Tensor | None = None
        self._before: Tensor | None = None
        self._handles: list[Any] = []
        self._oracle_added = False
        self._prepared: ExpandableTokenEmbedding | None = None
        #: rows that each step has used, again for each of its visits
        self._rows: dict[Step, Tensor] = {}

    # --------------------------------------------------------------- set-up
    def check_compatible(self, strategy: Any) -> None:
        """Make the vocabulary growable and freeze the rest.

        :raises ValueError: if active rows are asked for where they are not exact.
        """
        table = find_token_embedding(strategy.model)
        if table is None:
            table = attach_token_embedding(strategy.model, **self.tokenizer_options)
        table.init, table.seed = self.init, strategy.seed
        # Asked again for a plugin that was added later, it freezes nothing more.
        if self.freeze and self._prepared is not table:
            train_tokens_only(strategy.model, also=("cross_modal.",))
        self._prepared = table
        reason = self._inexact(strategy)
        if self.active_rows is True and reason:
            raise ValueError(
                f"active_rows=True is not exact here: {reason}. Use 'auto' or False."
            )

    def _inexact(self, strategy: Any) -> str:
        """Why training only the active rows may differ, empty if it does not."""
        kind = type(strategy.optimizer).__name__
        if kind not in ROW_WISE:
            return f"{kind} is not known to treat each entry alone"
        if not strategy.reset_optimizer_state:
            return "reset_optimizer_state=False keeps moments of other rows"
        shared = "d" not in (self.regularize or "") and self.weight_decay > 0
        if shared and kind != "AdamW":
            return f"the weight decay of {kind} acts through the gradient"
        for contract in strategy.contracts:
            harmless = contract.stateless or contract.keeps_per_weight_state is False
            if contract is not self and not harmless:
                name = type(contract.wrapped).__name__
                return f"{name} may keep something per weight"
        return ""

    def param_groups(self, strategy: Any) -> list[dict[str, Any]]:
        """Put the table in a group of its own, without the optimiser's decay."""
        table = self._table(strategy)
        names = [
            name
            for name, parameter in strategy.model.named_parameters()
            if parameter is table.trained and parameter.requires_grad
        ]
        decay = 0.0 if "d" in (self.regularize or "") else self.weight_decay
        return [{"names": names, "weight_decay": decay}]

    def _table(self, strategy: Any) -> ExpandableTokenEmbedding:
        table = find_token_embedding(strategy.model)
        assert table is not None
        if table.tokenizer is not strategy.model.tokenizer:
            raise ValueError(
                "model.tokenizer is not the tokenizer of the growing token table; "
                "assign no other one after attach_token_embedding."
            )
        return table

    # -------------------------------------------------------------- growing
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Bind the data to the growing tokenizer, and let it grow."""
        table, experience = self._table(strategy), strategy.experience
        _bind(experience.dataset, table.tokenizer)
        # Other plugins evaluate on streams of their own (patching, best epoch).
        stream = getattr(experience.logging(), "_origin_stream", None)
        streams = getattr(getattr(stream, "benchmark", None), "streams", {})
        for other in (e for own in streams.values() for e in own):
            _bind(other.dataset, table.tokenizer)
        # A run restored inside an experience has already grown for it.
        if self.grow and strategy._pending is None:
            self._grow_tokenizer(strategy, table.tokenizer)

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Bind test data to the growing tokenizer."""
        _bind(strategy.experience.dataset, self._table(strategy).tokenizer)

    def _grow_tokenizer(self, strategy: Any, tokenizer: Any) -> None:
        language, codes = language_of(strategy.experience)
        step = strategy.visits.current
        other = strategy.visits.number_of(step)
        self._table(strategy).draws = seed_number(step.place, other) - step.place
        if other and getattr(strategy.experience, "language", None) is None:
            language = f"{language} ({other + 1})"  # of another stream or benchmark
        if language in tokenizer.snapshots:
            tokenizer.add_language(language, codes=codes)
            return
        learnt: Any = self.oracle_vocabulary
        if self._oracle_added:
            learnt = None
        elif not isinstance(learnt, LearntVocabulary):
            learnt = self._learn(strategy, tokenizer, language)
        self._oracle_added = self.oracle_vocabulary is not None
        growth = tokenizer.add_language(language, learnt, codes=codes)
        self._growth.append(growth)
        logger.info("vocabulary: %s", growth)

    def _learn(self, strategy: Any, tokenizer: Any, language: str) -> LearntVocabulary:
        learnt = None
        if distributed.is_main_process():
            captions: Any = self.oracle_vocabulary
            if captions is None:
                captions = _strings(strategy.experience.dataset, language)
            learnt = tokenizer.train_language(language, captions, self.vocab_size)
        return distributed.broadcast_object(learnt)

    @property
    def growth(self) -> tuple[VocabularyGrowth, ...]:
        """What each growth of this run has added."""
        return tuple(self._growth)

    # ------------------------------------------------------------ the factors
    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Have the rows of the task chosen when all plugins have set the data."""
        self._table(strategy).plan(lambda: self._choose(strategy))

    def _choose(self, strategy: Any) -> Tensor | None:
        """Count tokens; return the rows to activate, or None for all."""
        table = self._table(strategy)
        self._occurs = self._current = self._used(strategy.experience.dataset, table)
        pooled = self._occurs
        if len(strategy.adapted_dataset) != len(strategy.experience.dataset):
            pooled = self._used(strategy.adapted_dataset, table)
        for contract in strategy.contracts:
            replayed = contract.replayed_data(strategy)
            if replayed is not None:
                pooled = pooled | self._used(replayed, table)
        if self.count_replay:
            self._current = pooled
        if not self.active_rows:
            return None
        reason = self._inexact(strategy)
        if reason:
            logger.info("all rows of the token table are trained: %s", reason)
            return None
        kept = pooled.clone()
        kept[list(table.tokenizer.special_ids)] = True
        kept[table.tokenizer.pad_id] = True
        return kept.nonzero().squeeze(1)

    def _used(self, dataset: Any, table: ExpandableTokenEmbedding) -> Tensor:
        """Which tokens the captions hold, uncut and without special ones."""
        used = torch.zeros(table.num_embeddings, dtype=torch.bool)
        tokenizer = table.tokenizer
        codes = language_codes(dataset)
        found: set[int] = set()
        seen: set[Any] = set()
        texts = progress(read_captions(dataset), "counting tokens", len(dataset))
        for index, captions in enumerate(texts):
            code = None if codes is None else int(codes[index])
            for caption in captions:
                if isinstance(caption, Tensor):
                    found.update(caption.tolist())
                elif (code, caption) not in seen:
                    seen.add((code, caption))
                    found.update(tokenizer.encode_in(caption, code))
        found -= set(tokenizer.special_ids)
        used[sorted(found)] = True
        return used

    def _factors(self, table: ExpandableTokenEmbedding, step: Step) -> Tensor:
        """``s_k`` of all rows, float64 on the CPU."""
        count = table.num_embeddings
        usage = table.usage.double()
        for other, rows in self._rows.items():
            # An earlier task counts once, however often it came; the own one never.
            counts = torch.bincount(rows.long(), minlength=count).double()
            usage -= counts if other == step else (counts - 1).clamp_min(0)
        special = torch.zeros(count, dtype=torch.bool)
        special[list(table.tokenizer.special_ids)] = True
        assert self._current is not None
        return teir_scale(
            self._current,
            torch.arange(count) < table.base_rows,
            usage,
            special,
        )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Compute the factors and watch the optimiser's steps."""
        table = self._table(strategy)
        table.plan(None)
        if self._current is None or len(self._current) != table.num_embeddings:
            self._choose(strategy)  # of a run restored from an older checkpoint
        scale = self._factors(table, strategy.visits.current)
        rows = table.active_rows
        if rows is not None:
            scale = scale[rows.cpu()]
        self.watch(strategy.optimizer, table, scale)

    def watch(
        self, optimizer: Any, table: ExpandableTokenEmbedding, scale: Tensor
    ) -> None:
        """Apply the rules in each step of an optimiser until the experience ends.

        :param optimizer: holds ``table.trained``.
        :param table: the growing table.
        :param scale: factor of each row of ``table.trained``.
        """
        self._release()
        self._scale = scale.to(table.weight.device, table.weight.dtype).unsqueeze(1)
        self._handles = [
            optimizer.register_step_pre_hook(
                lambda given, *_: self._before_step(given, table)
            ),
            optimizer.register_step_post_hook(lambda *_: self._after_step(table)),
        ]

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._before = [], None

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Take frozen rows out of the norm, if asked for."""
        gradient = self._table(strategy).trained.grad
        frozen = "g" in (self.regularize or "")
        if self.clip_after_mask and gradient is not None and frozen:
            assert self._scale is not None
            gradient.mul_(self._scale > 0)

    @torch.no_grad()
    def _before_step(self, optimizer: Any, table: ExpandableTokenEmbedding) -> None:
        """Decay and scale, just before the optimiser's own update."""
        parameter, kind = table.trained, self.regularize or ""
        if parameter.grad is None:
            return
        assert self._scale is not None
        rates = (
            float(group["lr"])
            for group in optimizer.param_groups
            if any(p is parameter for p in group["params"])
        )
        decay = next(rates, 0.0) * self.weight_decay
        if "d" in kind:
            parameter.mul_(1.0 - decay * self._scale)
        elif table.active is not None:
            table.factor *= 1.0 - decay
        if "g" in kind and self.scale_target == "gradient":
            parameter.grad.mul_(self._scale)
        elif "g" in kind:
            self._before = parameter.detach().clone()
            if "d" not in kind:
                self._before.mul_(1.0 - decay)

    @torch.no_grad()
    def _after_step(self, table: ExpandableTokenEmbedding) -> None:
        """Scale the update itself (``scale_target="update"``)."""
        if self._before is None:
            return
        assert self._scale is not None
        parameter, before = table.trained, self._before
        parameter.copy_(torch.lerp(before, parameter, self._scale))
        self._before = None

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Write the rows back, and count the task for the tokens it used."""
        table = self._table(strategy)
        self._release()
        if table.active is not None:
            strategy.optimizer.state.pop(table.active, None)
        table.settle()
        assert self._occurs is not None
        table.usage[: len(self._occurs)] += self._occurs
        step, rows = strategy.visits.current, self._occurs.nonzero().squeeze(1).int()
        self._rows[step] = torch.cat([self._rows.get(step, rows[:0]), rows])
        self._occurs = self._current = self._scale = None

    # ---------------------------------------------------------------- storage
    def state_dict(self) -> dict[str, Any]:
        """Return what the tables do not hold themselves."""
        return {
            "oracle_added": self._oracle_added,
            "growth": [vars(growth) for growth in self._growth],
            # What may be replayed changes during an experience, these do not.
            "rows": [[list(step), rows] for step, rows in self._rows.items()],
            "occurs": self._occurs,
            "current": self._current,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self._oracle_added = bool(state["oracle_added"])
        self._growth = [VocabularyGrowth(**growth) for growth in state["growth"]]
        self._rows = {read_step(step): rows for step, rows in state["rows"]}
        self._occurs, self._current = state["occurs"], state["current"]


def _bind(dataset: Any, tokenizer: Any) -> None:
    """Let the collate of a data set use the growing tokenizer of its model."""
    collate = getattr(dataset, "collate_fn", None)
    if not isinstance(collate, FieldCollate) or collate.tokenizer is tokenizer:
        return
    old = collate.tokenizer
    base = getattr(tokenizer, "base_vocab_size", 0)
    if hasattr(old, "base_vocab_size") or getattr(old, "vocab_size", base) > base:
        raise ValueError(
            "The data are bound to the tokenizer of another model; call "
            "prepare_benchmark(benchmark, model) with the model that is trained."
        )
    collate.tokenizer = tokenizer


def _strings(dataset: Any, language: str) -> list[str]:
    samples = progress(read_captions(dataset), "reading captions", len(dataset))
    captions = [c for texts in samples for c in texts]
    if any(not isinstance(caption, str) for caption in captions):
        raise ValueError(
            f"Captions of {language!r} are token ids, from which no vocabulary can be "
            "learnt; give strings, or grow=False."
        )
    return captions
