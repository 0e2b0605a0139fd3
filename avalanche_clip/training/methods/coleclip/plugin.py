"""CoLeCLIP: a prompt per task beside the image, and a vocabulary for all tasks.

Source: Li et al., "CoLeCLIP: Open-Domain Continual Learning via Joint Task Prompt and
Vocabulary Learning", 2024 (arXiv 2403.10245), and the authors' released code. Each
visit of a step is a task of its own here, since later prompts read earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.common.randomness import named_seed, seeded
from avalanche_clip.models.encoders.output import (
    CLIPOutput,
    class_scores,
    unit_features,
)
from avalanche_clip.models.peft.adapter import attach_adapters
from avalanche_clip.models.peft.attached import BranchSet, attached, attachment
from avalanche_clip.models.peft.lora import attach_lora
from avalanche_clip.models.peft.prompt import PromptSet, attach_prompts
from avalanche_clip.training.methods.coleclip.losses import (
    fused_embeddings,
    mean_cross_entropy,
    moved_embeddings,
    negatives_loss,
    owner_logits,
    stability_loss,
)
from avalanche_clip.training.methods.coleclip.vocabulary import (
    TEMPLATE_POLICIES,
    Vocabulary,
    class_keys,
)
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.label_spaces import experience_ids

QUANTILE = 0.7
PEFTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (attach_lora, {"rank": 5, "targets": ("k", "v"), "learned_scale": True}),
    "adapter": (
        attach_adapters,
        {
            **{"bottleneck": 5, "form": "parallel", "places": "attention_out"},
            **{"activation": "gelu", "scale": 1.0, "dropout": 0.0},
            "learned_scale": True,
        },
    ),
    "prefix": (
        attach_prompts,
        {"length": 10, "scale": 1.0, "compensate": True, "name": "prefixes"},
    ),
}
"""What may train the text tower in a task, with the authors' options."""


class Columns(NamedTuple):
    """Where the names of a label space are, on the device.

    :param ids: of the label space.
    :param first: per distinct name its first column, ``(K,)``.
    :param inverse: per column the place of its name, ``(C,)``.
    :param rows: of the vocabulary: the K names, and the names of earlier tasks.
    :param owned: per task, the places of its names among these.
    :param earlier: per earlier task, which of the names behind the K are its, bool.
    """

    ids: tuple[int, ...]
    first: Tensor
    inverse: Tensor
    rows: Tensor
    owned: list[Tensor]
    earlier: Tensor


class Table(NamedTuple):
    """Embeddings and owners of the columns of an evaluation.

    :param ids: of the label space.
    :param embeddings: ``(C, D)``.
    :param owned: per task, the columns that it owns.
    :param learned: whether some task owns a column, bool ``(C,)``.
    :param inverse: per column the place of its name, ``(C,)``.
    :param leading: whether a column is the first of its name, bool ``(C,)``.
    """

    ids: tuple[int, ...]
    embeddings: Tensor
    owned: list[Tensor]
    learned: Tensor
    inverse: Tensor
    leading: Tensor


@dataclass(eq=False, repr=False)
class CoLeCLIPPlugin(MethodPlugin, supports_distributed=True):
    """Learn a prompt per task, and embeddings of class names that all tasks share.

    CLIP stays frozen. Each task has prompt tokens in the image tower that read the
    image and earlier prompts and are read by neither, so that the plain feature stays
    what it is. A PEFT module, new in each task and dropped behind it, makes text
    features of the task's classes; the vocabulary's embedding of a name moves towards
    them once per optimiser step. Entries are known by name: classes of equal names are
    one, whatever their ids. In the second part of later tasks hard images also have
    names of earlier tasks as negatives, where an energy says that this is safe.

    A learned name is scored by the prompts of the tasks that have it, a name that was
    never learned by CLIP's own feature and its zero-shot embedding. What is told apart
    is decided by ``eval_label_space``: ``"own"`` knows the data set (task-incremental),
    ``"open"`` does not (class-incremental; data sets that are still unseen among their
    own names), ``"all"`` tells all names apart. Of columns with equal names only one
    competes for an image, that of its label if it is among them; the others have
    logits of -inf.

    Memory: D numbers per name and W per prompt token; within a task also the PEFT
    module, which no checkpoint holds behind it. Time: all classes of the step are
    encoded in each step, as without the plugin.

    :param alpha: momentum of the embeddings, in ``[0, 1]``; None for no memory (the
        paper's ablation): embeddings then change at the end of a task only, by
        half, and there is no stability term.
    :param quantile: of the energy differences of a batch that a safe negative must
        exceed, in ``[0, 1]``.
    :param stage_boundary: part of a task's steps without negatives, in ``[0, 1)``;
        None for no negatives at all (ablation).
    :param num_prompts: prompt tokens per task; 0 for none (ablation).
    :param peft: ``"lora"`` (keys and values), ``"adapter"`` or ``"prefix"``.
    :param peft_options: in place of those of :data:`PEFTS`.
    :param template_policy: templates of the zero-shot embedding of a name that several
        domains have: ``"joint"``, of all of them (the authors' code, needs the whole
        stream's prompts); ``"first_seen"``, of the one that has it first.
    :raises ValueError: for a value outside its range; for a strategy that is not on
        class names, or trains on other classes than the step's; for a model with
        something attached; together with plugins that replay data or text tables,
        choose what batches pass, protect, mix or restart weights.
    """

    only_one = True
    closes_last = True
    keeps_per_weight_state = False
    excludes = {
        "replays_data": "trains a prompt on one task, to which {} adds others",
        "routes_batches": "has prompts for all images, but {} chooses what they pass",
        "changes_text_table": "freezes the token table, which {} changes",
        "starts_fresh": "goes on from step to step, but {} begins each one anew",
        "starts_elsewhere": "keeps all weights, but {} starts a step from others",
        "replaces_deployed_weights": (
            "has prompts and embeddings that belong together, but {} would change the "
            "prompts alone"
        ),
        "protects_weights": (
            "trains what no earlier task has, so that {} would protect nothing"
        ),
    }

    alpha: float | None = 0.1
    _: KW_ONLY
    quantile: float = QUANTILE
    stage_boundary: float | None = 0.5
    num_prompts: int = 1
    peft: str = "lora"
    peft_options: Mapping[str, Any] | None = None
    template_policy: str = "joint"

    def __post_init__(self) -> None:
        super().__init__()
        none = "None for the ablation"
        if self.alpha is not None:
            self.alpha = as_finite(self.alpha, "alpha", low=0, high=1, hint=none)
        self.quantile = as_finite(self.quantile, "quantile", low=0, high=1)
        boundary = self.stage_boundary
        if boundary is not None:
            self.stage_boundary = as_finite(
                boundary, "stage_boundary", low=0, below=1, hint=none
            )
        elif self.quantile != QUANTILE:
            raise ValueError(
                f"quantile={self.quantile} is of the negatives, which "
                "stage_boundary=None leaves out; leave one of them out."
            )
        self.num_prompts = as_size(self.num_prompts, "num_prompts", least=0)
        require_choice("peft", self.peft, PEFTS)
        require_choice("template_policy", self.template_policy, TEMPLATE_POLICIES)
        if self.peft_options is not None:
            self.peft_options = dict(self.peft_options)
        self._text: BranchSet | None = None
        self._prompts: PromptSet | None = None
        self._forget()

    def _forget(self) -> None:
        """Drop what belongs to an earlier run."""
        self.vocabulary = Vocabulary()
        self._running: list[Any] | None = None  # the step of the running task
        self._columns: Columns | None = None
        self._table: Table | None = None
        self._loss: Tensor | None = None
        self._stability: Tensor | None = None

    # -------------------------------------------------------------- attaching
    def check_compatible(self, strategy: Any) -> None:
        """Attach prompts and the PEFT module, so that the strategy trains them only.

        :raises ValueError: see the class.
        """
        if not isinstance(strategy, ClassNameTemplate):
            raise ValueError(
                f"CoLeCLIPPlugin learns class names, but {type(strategy).__name__} "
                "trains on captions; use ClassNameTemplate, or CoLeCLIP."
            )
        if strategy.label_space not in ("own", "current"):
            raise ValueError(
                f"label_space={strategy.label_space!r} has classes of other steps, "
                "which CoLeCLIPPlugin chooses itself; use 'own'."
            )
        model = strategy.model
        if self._text is not None and attachment(model, self._text.name) is self._text:
            return  # asked again, for a plugin that was added later
        others = [branches.name for branches in attached(model)]
        if others:
            raise ValueError(
                f"The model has {others}, but CoLeCLIPPlugin attaches all that it "
                "trains and freezes the rest; detach() them before."
            )
        self._forget()
        attach, options = PEFTS[self.peft]
        options = {**options, **(self.peft_options or {})}
        if self.peft == "lora":  # so that the learned scale starts at 1
            options.setdefault("alpha", float(options["rank"]))
        with seeded(named_seed(strategy.seed, 0)):
            self._prompts = None
            if self.num_prompts:
                length = self.num_prompts
                self._prompts = attach_prompts(  # type: ignore[assignment]
                    model, "image", kind="tokens", length=length
                )
            self._text = attach(model, "text", **options)
        for part in self._parts:
            part.set_ids(-1)
        strategy.make_optimizer(reset_optimizer_state=True)
        # What is frozen for good needs no place in checkpoints.
        strategy.groups.known = set(optim.trainable(model))

    @property
    def _parts(self) -> list[BranchSet]:
        assert self._text is not None
        return [part for part in (self._text, self._prompts) if part is not None]

    # ------------------------------------------------------------------ tasks
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a task: its names, its prompts, and a fresh PEFT module."""
        step = list(strategy.visits.current)
        if self._running == step:
            return  # resumed inside it
        self._close(strategy)  # one that has failed
        prompts = strategy.class_prompts
        named: dict[str, int] = {}
        for number in sorted(experience_ids(strategy.experience)):
            named.setdefault(prompts.name(number), number)
        self.vocabulary.begin(
            list(named),
            lambda new: self._zero_shot(strategy, [named[name] for name in new]),
        )
        task = len(self.vocabulary.tasks) - 1
        for part in self._parts:
            with seeded(named_seed(strategy.seed, task)):
                part.add(task)
            part.train_ids([task])
            part.set_ids(task)
        self._running = step

    def _zero_shot(self, strategy: Any, ids: Sequence[int]) -> Tensor:
        """Zero-shot embeddings of classes, ``(N, D)``; encoded domain by domain."""
        assert self._text is not None
        tower = strategy.model._tensors_of("text")
        mark = self._text.fingerprint_of(tower)
        with self._text.using_ids(text=-1):
            return self._vectors(strategy, ids, variant="zero-shot", fingerprint=mark)

    def _vectors(self, strategy: Any, ids: Sequence[int], **options: Any) -> Tensor:
        prompts = strategy.class_prompts
        groups: dict[str, list[int]] = {}
        keys = class_keys(prompts, ids, self.template_policy)
        for place, number in enumerate(ids):
            groups.setdefault(prompts.domain(number), []).append(place)
        found = strategy.scorer.vectors(
            [[keys[place] for place in group] for group in groups.values()], **options
        )
        order = [place for group in groups.values() for place in group]
        return found[torch.tensor(order, device=found.device).argsort()]

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Drop the PEFT module; without memory, learn the embeddings before."""
        words = self.vocabulary
        if self._running is not None and self.alpha is None:
            assert self._columns is not None and words.start is not None
            ids = [self._columns.ids[place] for place in self._columns.first.tolist()]
            texts = self._vectors(strategy, ids, variant="tuned")
            words.vectors[words.tasks[-1]] = fused_embeddings(words.start, texts)
        self._close(strategy)

    def _close(self, strategy: Any) -> None:
        if self._running is None:
            return
        for part in self._parts:
            for _, parameter in part.trainable_parameters():
                strategy.optimizer.state.pop(parameter, None)
            part.train_ids([])
        assert self._text is not None
        self._text.drop(len(self.vocabulary.tasks) - 1)
        self.vocabulary.start = self._running = self._columns = None

    # --------------------------------------------------------------- training
    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Compare the batch with the embeddings, and let these move."""
        output, words = strategy.global_features, self.vocabulary
        columns = self._training_columns(strategy)
        count = len(columns.first)
        own, others = columns.rows[:count], columns.rows[count:]
        start = words.start
        assert start is not None
        kept = start if self.alpha is None else words.vectors[own]
        fused = fused_embeddings(kept, output.text_features[columns.first])
        targets = columns.inverse[strategy.gather_rows(strategy.mb_y)]
        scores = partial(class_scores, output)
        prompted = self._prompted(output, (output.aux or {}).get("prompt_features"))
        if self._has_negatives(strategy):
            every = torch.cat([fused, words.vectors[others]])
            logits = [scores(output.image_features, every)]
            if prompted is not None:
                logits.append(owner_logits(prompted, every, columns.owned, scores))
            scale, earlier = output.logit_scale, columns.earlier
            self._loss = negatives_loss(
                logits, targets, count, earlier, scale, self.quantile
            )
        else:
            logits = [scores(output.image_features, fused)]
            if prompted is not None:
                logits.append(scores(prompted[:, -1], fused))
            self._loss = mean_cross_entropy(logits, targets)
        if self.alpha is not None:
            self._stability = stability_loss(fused, start)
            words.vectors[own] = moved_embeddings(kept, fused.detach(), self.alpha)
        first = sum(strategy.batch_sizes[: distributed.rank()])
        rows = logits[-1][first : first + len(strategy.mb_features.image_features)]
        strategy.mb_output = rows[:, columns.inverse]

    def _has_negatives(self, strategy: Any) -> bool:
        if self.stage_boundary is None or len(self.vocabulary.tasks) == 1:
            return False
        last = int(self.stage_boundary * strategy.planned_iterations)
        return bool(strategy.clock.train_exp_iterations > last)

    @staticmethod
    def _prompted(output: CLIPOutput, read: Tensor | None) -> Tensor | None:
        """Features ``(B, T, D)`` half way between what prompts have read and CLIP's."""
        if read is None:
            return None
        plain = output.image_features * (output.aux or {})["image_norm"]
        return unit_features(read + plain[:, None])[0]

    def _training_columns(self, strategy: Any) -> Columns:
        known, ids = self._columns, strategy.label_ids
        if known is not None and known.ids is ids:
            return known
        words = self.vocabulary
        names = [strategy.class_prompts.name(number) for number in ids]
        first, inverse = _distinct(names)
        *before, own = words.tasks
        if [words.places.get(names[place]) for place in first] != own:
            raise ValueError(
                f"The step has {len(own)} names, but its batches are told apart among "
                f"{len(first)}: a plugin has added classes, which CoLeCLIPPlugin "
                "cannot train."
            )
        others = [r for r in dict.fromkeys(sum(before, [])) if r not in set(own)]
        place = {row: number for number, row in enumerate([*own, *others])}
        tensor = partial(torch.tensor, device=strategy.device, dtype=torch.int64)
        kept = [[row in set(rows) for row in others] for rows in before]
        found = Columns(
            ids,
            tensor(first),
            tensor(inverse),
            tensor([*own, *others]),
            [tensor([place[row] for row in rows]) for rows in words.tasks],
            tensor(kept, dtype=torch.bool).view(len(before), len(others)),
        )
        self._columns = found
        return found

    def class_loss(self, strategy: Any) -> Tensor | None:
        """Mean of the cross-entropies by CLIP's feature and by the prompts."""
        loss, self._loss = self._loss, None
        return loss

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the stability term."""
        if self._stability is not None:
            strategy.add_loss("stability", self._stability)
            self._stability = None

    # ------------------------------------------------------------- evaluation
    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look embeddings up anew."""
        self._table = None

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of them."""
        self._table = None

    def class_logits(self, strategy: Any, image_features: Tensor) -> Tensor | None:
        """Logits of learned names by their owners, of all others by CLIP's feature.

        :param strategy: with the evaluation batch.
        :param image_features: ``(B, D)``.
        :return: ``(B, C)``.
        """
        table = self._evaluation_table(strategy)
        scores = partial(class_scores, strategy.mb_features)
        logits = scores(image_features, table.embeddings)
        with strategy.autocast():
            read = None if self._prompts is None else self._prompts.read()
        prompted = self._prompted(strategy.mb_features, read)
        if prompted is not None:
            best = owner_logits(prompted, table.embeddings, table.owned, scores)
            logits = torch.where(table.learned, best, logits)
        if bool(table.leading.all()):
            return logits
        columns, target = torch.arange(len(table.ids)), strategy.mb_y[:, None]
        same = table.inverse == table.inverse[target]
        competes = torch.where(same, columns.to(target.device) == target, table.leading)
        return logits.masked_fill(~competes, float("-inf"))

    def _evaluation_table(self, strategy: Any) -> Table:
        known, ids = self._table, strategy.label_ids
        if known is not None and known.ids is ids:
            return known
        words, device = self.vocabulary, strategy.device
        names = [strategy.class_prompts.name(number) for number in ids]
        first, inverse = _distinct(names)
        rows = [words.places.get(name, -1) for name in names]
        learned = torch.tensor(rows, device=device) >= 0
        embeddings = torch.zeros(
            len(ids), strategy.model.embed_dim, device=device, dtype=torch.float32
        )
        if bool(learned.any()):
            embeddings[learned] = words.vectors[[row for row in rows if row >= 0]]
        never = [number for number, row in zip(ids, rows, strict=True) if row < 0]
        if never:
            embeddings[~learned] = self._zero_shot(strategy, never)
        tensor = partial(torch.tensor, device=device, dtype=torch.int64)
        leading = torch.zeros(len(ids), dtype=torch.bool, device=device)
        leading[first] = True
        owned = [set(task) for task in words.tasks]
        self._table = Table(
            ids,
            embeddings,
            [tensor([c for c, row in enumerate(rows) if row in own]) for own in owned],
            learned,
            tensor(inverse),
            leading,
        )
        return self._table

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return the vocabulary, and which task is running.

        Prompts, and the PEFT module of a running task, are parts of the model.
        """
        return {"running": self._running, **self.vocabulary.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned.

        :raises ValueError: if it is damaged, or of a model of another width.
        """
        assert self._text is not None
        self.vocabulary.load_state_dict(state, self._text.model.embed_dim)
        running = state["running"]
        self._running = None if running is None else list(running)
        self._columns = self._table = None


def _distinct(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """First place of each name, and for each name its place among the distinct."""
    places: dict[str, int] = {}
    inverse = [places.setdefault(name, len(places)) for name in names]
    return [names.index(name) for name in places], inverse
