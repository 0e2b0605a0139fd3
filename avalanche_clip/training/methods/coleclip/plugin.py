"""CoLeCLIP: a prompt per task beside the image, and a vocabulary for all tasks.

Source: Li et al., "CoLeCLIP: Open-Domain Continual Learning via Joint Task Prompt and
Vocabulary Learning", 2024 (arXiv 2403.10245), and the authors' released code. Each
visit of a step is a task of its own here, since later prompts read earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

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
from avalanche_clip.models.peft.prompt import attach_prompts
from avalanche_clip.training.methods.coleclip import losses, vocabulary
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.label_spaces import experience_ids
from avalanche_clip.training.templates.options import require_options

QUANTILE = 0.7
_NONE = "None for the ablation"
_PARALLEL = {
    **{"form": "parallel", "places": "attention_out", "activation": "gelu"},
    **{"scale": 1.0, "learned_scale": True},
}
_PREFIX = {"scale": 1.0, "compensate": True, "name": "prefixes"}
PEFTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (attach_lora, {"rank": 5, "targets": ("k", "v"), "learned_scale": True}),
    "adapter": (attach_adapters, {"bottleneck": 5, "dropout": 0.0, **_PARALLEL}),
    "prefix": (attach_prompts, {"length": 10, **_PREFIX}),
}
"""What may train the text tower in a task, with the authors' options."""


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

    >>> from avalanche_clip import create_dual_encoder
    >>> plugin = CoLeCLIPPlugin(num_prompts=2)
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> options = {"label_space": "own", "plugins": [plugin], "evaluator": None}
    >>> strategy = ClassNameTemplate(model=model, **options)
    >>> model.prompts.num_trainable, plugin.vocabulary.names
    (256, [])
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
        "replaces_deployed_weights": "deploys what it has trained, but {} others",
        "protects_weights": "trains what no earlier task has, so {} protects nothing",
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
        if self.alpha is not None:
            self.alpha = as_finite(self.alpha, "alpha", low=0, high=1, hint=_NONE)
        self.quantile = as_finite(self.quantile, "quantile", low=0, high=1)
        bound, what = self.stage_boundary, "stage_boundary"
        if bound is not None:
            self.stage_boundary = as_finite(bound, what, low=0, below=1, hint=_NONE)
        elif self.quantile != QUANTILE:
            raise ValueError(
                f"quantile={self.quantile} is of the negatives, which "
                "stage_boundary=None leaves out; leave one of them out."
            )
        self.num_prompts = as_size(self.num_prompts, "num_prompts", least=0)
        require_choice("peft", self.peft, PEFTS)
        attach, taken = PEFTS[self.peft][0], ("model", "tower")
        require_options("peft_options", self.peft_options, attach, taken)
        policies = vocabulary.TEMPLATE_POLICIES
        require_choice("template_policy", self.template_policy, policies)
        self._text: Any = None
        self._prompts: Any = None
        self._forget()

    def _forget(self) -> None:
        """Drop what belongs to an earlier run."""
        self.vocabulary = vocabulary.Vocabulary()
        self._running: list[Any] | None = None  # the step of the running task
        self._tables: dict[tuple[int, ...], tuple[Any, ...]] = {}
        """By the classes of an evaluation."""
        self._read: tuple[Tensor, Tensor | None] | None = None
        """Features of an evaluation batch, and what the prompts have read of it."""
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
        model: Any = strategy.model
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
            options.setdefault("alpha", as_size(options["rank"], "rank"))
        with seeded(named_seed(strategy.seed, 0)):
            if self.num_prompts:
                tokens: Any = {"kind": "tokens", "length": self.num_prompts}
                self._prompts = attach_prompts(model, "image", **tokens)
            self._text = attach(model, "text", **options)
        for part in self._parts:
            part.set_ids(-1)
        strategy.make_optimizer(reset_optimizer_state=True)
        # What is frozen for good needs no place in checkpoints.
        strategy.groups.known = set(optim.trainable(model))

    @property
    def _parts(self) -> list[BranchSet]:
        return [part for part in (self._text, self._prompts) if part is not None]

    def check_suites(self, strategy: Any, benchmark: Any) -> None:
        """Refuse nothing: texts of suites are no names of the vocabulary.

        They are scored like those that were never learned, by CLIP's own feature, which
        no prompt changes.
        """

    # ------------------------------------------------------------------ tasks
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a task: its names, its prompts, and a fresh PEFT module."""
        step = list(strategy.visits.current)
        if self._running == step:
            return  # resumed inside it
        self._close(strategy)  # one that has failed
        named = _named(strategy)
        self.vocabulary.begin(
            list(named),
            # What a task learns is booked, whatever was evaluated before.
            lambda new: self._zero_shot(strategy, [named[n] for n in new], "learned"),
        )
        task = len(self.vocabulary.tasks) - 1
        for part in self._parts:
            with seeded(named_seed(strategy.seed, task)):
                part.add(task)
            part.train_ids([task])
            part.set_ids(task)
        self._running = step

    def _zero_shot(self, strategy: Any, ids: Sequence[int], variant: str) -> Tensor:
        """Zero-shot embeddings of classes, ``(N, D)``, kept under a name."""
        mark = self._text.fingerprint_of(strategy.model._tensors_of("text"))
        with self._text.using_ids(text=-1):
            return self._vectors(strategy, ids, variant=variant, fingerprint=mark)

    def _vectors(self, strategy: Any, ids: Sequence[int], **options: Any) -> Tensor:
        policy, prompts = self.template_policy, strategy.class_prompts
        keys = vocabulary.class_keys(prompts, ids, policy)
        found: Tensor = strategy.scorer.vectors([keys], **options)
        return found

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Drop the PEFT module; without memory, learn the embeddings before."""
        words, ids = self.vocabulary, list(_named(strategy).values())
        if self._running is not None and self.alpha is None:
            texts = self._vectors(strategy, ids, variant="tuned")
            fused = losses.fused_embeddings(words.start, texts)
            words.vectors[words.tasks[-1]] = fused
        self._close(strategy)

    def _close(self, strategy: Any) -> None:
        if self._running is None:
            return
        for part in self._parts:
            for _, parameter in part.trainable_parameters():
                strategy.optimizer.state.pop(parameter, None)
            part.train_ids([])
        self._text.drop(len(self.vocabulary.tasks) - 1)
        self.vocabulary.start = self._running = None

    # --------------------------------------------------------------- training
    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Compare the batch with the embeddings, and let these move."""
        output, words = strategy.global_features, self.vocabulary
        own, start = words.tasks[-1], words.start
        names = [strategy.class_prompts.name(i) for i in strategy.label_ids]
        if [words.places.get(name) for name in dict.fromkeys(names)] != own:
            raise ValueError(
                f"The step has {len(own)} names, but its batches are told apart among "
                f"{names}: a plugin has added classes, which CoLeCLIPPlugin cannot "
                "train."
            )
        first, inverse = vocabulary.distinct(names, strategy.device)
        kept = start if self.alpha is None else words.vectors[own]
        fused = losses.fused_embeddings(kept, output.text_features[first])
        targets = inverse[strategy.gather_rows(strategy.mb_y)]
        scores = partial(class_scores, output)
        prompted = self._prompted(output, output.aux.get("prompt_features"))
        negatives = self._has_negatives(strategy)
        told: Any = words.negatives() if negatives else ([], [], None)
        others, owned, earlier = told
        every = torch.cat([fused, words.vectors[others]])
        logits = [scores(output.image_features, every)]
        if prompted is not None and negatives:
            logits.append(losses.owner_logits(prompted, every, owned, scores))
        elif prompted is not None:
            logits.append(scores(prompted[:, -1], fused))
        self._loss = losses.mean_cross_entropy(logits, targets)
        if negatives:
            facts: Any = len(own), earlier, output.logit_scale, self.quantile
            self._loss = losses.negatives_loss(logits, targets, *facts)
        if self.alpha is not None:
            self._stability = losses.stability_loss(fused, start)
            moved = losses.moved_embeddings(kept, fused.detach(), self.alpha)
            words.vectors[own] = moved
        rows = logits[-1][distributed.own_rows(strategy.batch_sizes)]
        strategy.mb_output = rows[:, inverse]

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
        self._tables, self._read = {}, None

    after_eval_exp = before_eval_exp  # and let go of them

    def class_logits(self, strategy: Any, image_features: Tensor) -> Tensor | None:
        """Logits of learned names by their owners, of all others by CLIP's feature.

        :param strategy: with the evaluation batch.
        :param image_features: ``(B, D)``.
        :return: ``(B, C)``.
        """
        ids = strategy.label_ids
        if ids not in self._tables:
            self._tables[ids] = self._evaluation_table(strategy)
        embeddings, owned, learned, inverse, leading = self._tables[ids]
        scores = partial(class_scores, strategy.mb_features)
        logits = scores(image_features, embeddings)
        if self._read is None or self._read[0] is not image_features:
            with strategy.autocast():
                read = None if self._prompts is None else self._prompts.read()
            self._read = image_features, read
        prompted = self._prompted(strategy.mb_features, self._read[1])
        if prompted is not None:
            best = losses.owner_logits(prompted, embeddings, owned, scores)
            logits = torch.where(learned, best, logits)
        target = strategy.mb_y[:, None]
        own = torch.arange(len(inverse), device=target.device) == target
        competes = torch.where(inverse == inverse[target], own, leading)
        return logits.masked_fill(~competes, float("-inf"))

    def _evaluation_table(self, strategy: Any) -> tuple[Any, ...]:
        """Embeddings and owners of the columns of an evaluation.

        :return: embeddings ``(C, D)``; per task the columns that it owns; whether some
            task owns a column, bool ``(C,)``; per column the place of its name among
            the distinct, ``(C,)``; whether it is the first of its name, bool ``(C,)``.
        """
        words, ids, device = self.vocabulary, strategy.label_ids, strategy.device
        names = [strategy.class_prompts.name(number) for number in ids]
        first, inverse = vocabulary.distinct(names, device)
        rows = torch.tensor([words.places.get(name, -1) for name in names])
        learned = (rows >= 0).to(device)
        embeddings = torch.zeros(len(ids), strategy.model.embed_dim, device=device)
        if bool(learned.any()):
            embeddings[learned] = words.vectors[rows[rows >= 0]]
        if never := [i for i, row in zip(ids, rows.tolist()) if row < 0]:
            embeddings[~learned] = self._zero_shot(strategy, never, "zero-shot")
        own = (torch.isin(rows, torch.tensor(task)) for task in words.tasks)
        owned = [columns.nonzero().squeeze(1).to(device) for columns in own]
        leading = torch.zeros_like(learned).index_fill(0, first, True)
        return embeddings, owned, learned, inverse, leading

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
        self.vocabulary.load_state_dict(state, self._text.model.embed_dim)
        self._running, self._tables = state["running"], {}


def _named(strategy: Any) -> dict[str, int]:
    """Names of the running experience, each with its first class."""
    named: dict[str, int] = {}
    for number in sorted(experience_ids(strategy.experience)):
        named.setdefault(strategy.class_prompts.name(number), number)
    return named
