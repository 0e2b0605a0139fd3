"""CLL-CLIP: a CLIP model learns one language after the other.

Source: Yang et al., AAAI 2024 (CLL-CLIP with TEIR, arXiv 2401.17186) and the
released code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.models import (
    CLIPOutput,
    attach_token_embedding,
    find_token_embedding,
    train_tokens_only,
)
from avalanche_clip.training.methods.cll_clip.expansion import (
    TokenEmbeddingExpansionPlugin,
)
from avalanche_clip.training.methods.cll_clip.student import (
    CrossLingualCriterion,
    CrossLingualSidePlugin,
    CrossModalTemperature,
    TextStudent,
)
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.contrastive import (
    ContrastiveTemplate,
)
from avalanche_clip.training.templates.options import further_options

TRAINABLE = ("tokens", "text", "nothing")

CLL_VARIANTS: dict[str, dict[str, Any]] = {
    "cll-clip": {"init": "normal", "regularize": None},
    "teir": {},
    "init-only": {"regularize": None},
    "regularize-only": {"init": "normal"},
    "gradient-only": {"init": "normal", "regularize": "g"},
    "decay-only": {"init": "normal", "regularize": "d"},
    "cross-modal-only": {"cross_lingual_weight": 0.0, "cross_modal_weight": 1.0},
    "cross-lingual-only": {"cross_modal_weight": 0.0},
    "train-text": {"trainable": "text"},
    "joint": {"init": "normal", "regularize": None, "vocab_size": 200_000},
    "frozen": {"trainable": "nothing"},
}
"""Methods and ablations of the paper -> options of :class:`CLLCLIP`. "joint" is
for a stream of one experience that holds all languages; the oracle vocabulary is
``oracle_vocabulary=<captions of all languages>, vocab_size=200_000``."""


def cll_clip_optimizer(
    groups: list[dict[str, Any]], *, fused: bool | None = None
) -> Optimizer:
    """AdamW with the values of the released code.

    :param groups: parameter groups.
    :param fused: one pass over the weights per step instead of about eight; not
        for gradient scalers, which leave the decision to skip to such steps.
    """
    return torch.optim.AdamW(groups, lr=5e-5, betas=(0.9, 0.999), eps=1e-6, fused=fused)


class CLLCLIP(ContrastiveTemplate):
    """Continual language learning by growing and training the token table.

    The student is the text tower on captions of the new language. Its targets
    are features of the frozen original model: those of the English captions
    (mean squared error) and of the images (InfoNCE with a learnable
    temperature). Nothing but the token table and the temperature is trained.

    Batches may carry ``teacher_text`` and ``teacher_image``, raw features
    ``(B, e)``; then no tower of the teacher runs and images may be left out (see
    ``attach_teacher_features``). Where ``teacher_image`` is missing, the initial
    model encodes the images; where ``teacher_text`` is missing, it encodes
    ``source_text`` (ids of the original tokenizer) or ``teacher_captions``.
    Texts of one image are positives of each other, by ``image_id``, else by
    ``targets`` of the data.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`; its vocabulary is
        made growable, and everything but the table is frozen.
    :param optimizer: default AdamW with lr 5e-5, betas 0.9 and 0.999, eps 1e-6.
    :param vocab_size: tokens learnt per language.
    :param init: of new rows, ``"teir"`` or ``"normal"``.
    :param regularize: see :class:`TokenEmbeddingExpansionPlugin`.
    :param cross_lingual_weight: of the mean squared error, ``>= 0``.
    :param cross_modal_weight: of the InfoNCE term, ``>= 0``.
    :param weight_decay: of the table (and of the text tower, if trained), whatever
        ``optimizer`` has.
    :param trainable: ``"tokens"``; ``"text"``: the whole text tower;
        ``"nothing"``: the model stays as it is, and training does nothing.
    :param teacher_captions: English captions by ``text_id`` (or by
        ``sample_id``, for data without): a sequence or a mapping.
    :param plugin_options: further options of :class:`TokenEmbeddingExpansionPlugin`.
    :param warmup_fraction: part of each experience's steps with a learning rate
        that rises from 0 in the first step.
    :param length_groups: groups of similar length in which the captions of a batch
        are encoded, see :func:`encode_by_length`; not with plugins that treat the
        captions of a batch differently (language adapters with replay).
    :param plugins: further plugins, asked before the own ones.
    :param kwargs: see :class:`ContrastiveTemplate`; defaults are the paper's:
        3 epochs, batches of 128, gradients clipped at 1.
    :raises ValueError: for negative or all-zero weights, or an unknown choice.
    """

    former_options = "expansion"
    sets = ("criterion", "positives")

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer | Callable[..., Optimizer] | None = None,
        vocab_size: int = 10_000,
        init: str = "teir",
        regularize: str | None = "gd",
        cross_lingual_weight: float = 1.0,
        cross_modal_weight: float = 0.01,
        weight_decay: float = 0.05,
        trainable: str = "tokens",
        teacher_captions: Any = None,
        plugin_options: Mapping[str, Any] | None = None,
        expansion: Mapping[str, Any] | None = None,
        warmup_fraction: float = 0.1,
        length_groups: int = 1,
        plugins: Sequence[Any] | None = None,
        param_groups: optim.GroupRule | None = None,
        train_mb_size: int = 128,
        train_epochs: int = 3,
        clip_grad_norm: float | None = 1.0,
        **kwargs: Any,
    ):
        require_choice("trainable", trainable, TRAINABLE)
        as_finite(warmup_fraction, "warmup_fraction", low=0, below=1)
        as_finite(cross_lingual_weight, "cross_lingual_weight", low=0)
        as_finite(cross_modal_weight, "cross_modal_weight", low=0)
        if cross_lingual_weight + cross_modal_weight == 0:
            raise ValueError(
                "cross_lingual_weight and cross_modal_weight must not both be 0."
            )
        as_size(length_groups, "length_groups")
        self.length_groups = length_groups
        self.trainable = trainable
        self.warmup_fraction = warmup_fraction
        self.teacher_captions = teacher_captions
        self.teacher_fields = {"teacher_image"}
        if cross_lingual_weight:
            self.teacher_fields.add("teacher_text")
        taken = ("vocab_size", "init", "regularize", "weight_decay")
        plugin = TokenEmbeddingExpansionPlugin
        further = further_options(self, plugin, plugin_options, taken, expansion)
        self.expansion = plugin(
            vocab_size,
            init,
            regularize,
            weight_decay=weight_decay,
            **{"freeze": False, **further},
        )
        _prepare(model, self.expansion, trainable, cross_modal_weight > 0)
        own = [CrossLingualSidePlugin()]
        if trainable != "nothing":
            own.append(self.expansion)
        on_cpu = torch.device(kwargs.get("device") or "cpu").type == "cpu"
        fused = on_cpu and kwargs.get("precision", "fp32") != "fp16"
        self._default_optimizer = partial(cll_clip_optimizer, fused=fused or None)
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=CrossLingualCriterion(cross_lingual_weight, cross_modal_weight),
            param_groups=param_groups
            or partial(optim.clip_param_groups, weight_decay=weight_decay),
            plugins=[*(plugins or []), *own],
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            clip_grad_norm=clip_grad_norm,
            **kwargs,
        )
        self._student = TextStudent(model, length_groups)

    # -------------------------------------------------------------- training
    def _train_exp(
        self, experience: Any, eval_streams: Any = None, **kwargs: Any
    ) -> None:
        if self.trainable != "nothing":
            super()._train_exp(experience, eval_streams, **kwargs)

    def _set_learning_rate(self) -> None:
        steps = int(self.warmup_fraction * self.planned_iterations)
        own = self.schedule == "constant" and not self.plan.warmup
        if not own or not steps:
            super()._set_learning_rate()
            return
        part = min(1.0, self.clock.train_exp_iterations / steps)
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["initial_lr"]) * part

    def meet(self) -> None:
        """Also complete the batch by the teacher's features."""
        super().meet()
        self._complete(self.mb_x)

    def encode(self, batch: Any, *, synced: bool = False) -> CLIPOutput:
        """Encode the texts of a batch; its images only where no teacher has."""
        if not self.is_training and "teacher_image" not in batch:
            return super().encode(batch)
        if self.is_training:
            self._complete(batch)
        self._student.for_loss = self.is_training
        ddp = self.step.synced if synced else None
        with self.autocast():
            return self._student(batch) if ddp is None else ddp(batch)

    def synced_module(self) -> nn.Module:
        """The text student, not the model."""
        return self._student

    def criterion(self) -> Tensor:
        """Loss of the global batch (training) or the local one (evaluation)."""
        if not self.is_training:
            return super().criterion()
        assert self.global_features is not None
        ids = self.mb_x.get("image_id")
        targets = self.gather_rows(self.mb_targets if ids is None else ids)
        return self._criterion(self.global_features, targets)

    def _count_batch(self) -> None:
        samples, texts = self.batch_totals(self.mb_x)
        self.compute.spend("train", images=0, texts=texts, steps=1, samples=samples)

    def _count_evaluated(self, batch: Any) -> None:
        images = 0 if "teacher_image" in batch else len(batch)
        self.count_evaluated(images, len(batch["text"]))

    # --------------------------------------------------------------- teacher
    @torch.no_grad()
    def _complete(self, batch: Any) -> None:
        """Add the teacher's features that the data do not have."""
        missing = self.teacher_fields - set(batch)
        if not missing:
            return
        teacher = self.teachers.get("initial").model
        size = self.batch_totals(batch)[0]
        images = size if "teacher_image" in missing else 0
        texts = size if "teacher_text" in missing else 0
        self.compute.spend("teacher", images=images, texts=texts)
        with self.autocast():
            if images:
                image = batch["image"]
                batch["teacher_image"] = teacher.encode_image(image, normalize=False)
            if texts:
                ids = self._source_ids(batch, teacher).to(self.device)
                batch["teacher_text"] = teacher.encode_text(ids, normalize=False)

    def _source_ids(self, batch: Any, teacher: Any) -> Tensor:
        """Token ids of the English captions of a batch."""
        if "source_text" in batch:
            return batch["source_text"]
        if self.teacher_captions is None:
            raise ValueError(
                "The cross-lingual loss needs the English captions' features, but the "
                f"batch holds {sorted(batch)}. Use attach_teacher_features, or give "
                "teacher_captions, or set cross_lingual_weight=0."
            )
        rows = batch["text_id"] if "text_id" in batch else batch["sample_id"]
        captions = [self.teacher_captions[int(row)] for row in rows]
        return teacher.tokenizer(captions)


def _prepare(
    model: Any, expansion: TokenEmbeddingExpansionPlugin, trainable: str, modal: bool
) -> None:
    """Make the vocabulary growable, and choose what trains."""
    if find_token_embedding(model) is None:
        attach_token_embedding(model, **expansion.tokenizer_options)
    also: tuple[str, ...] = ()
    if trainable == "text":
        tower_of = getattr(model, "tower_of", None)
        names = [name for name, _ in model.named_parameters()]
        also = tuple(n for n in names if callable(tower_of) and tower_of(n) == "text")
        if not also:
            raise ValueError(
                f"trainable='text' needs a model that names its towers; "
                f"{type(model).__name__} does not. Use a DualEncoder."
            )
    train_tokens_only(model, also)
    if modal and getattr(model, "cross_modal", None) is None:
        model.cross_modal = CrossModalTemperature()
    if not modal and getattr(model, "cross_modal", None) is not None:
        del model.cross_modal
