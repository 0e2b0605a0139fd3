"""VR-LwF: keep how images relate to random sentences of the vocabulary.

Source: Ding et al., "Don't Stop Learning: Towards Continual Learning for the
CLIP Model", arXiv 2207.09248 (2022), for which no code is known. Numbers and
form are those of the re-implementation in the code of Zheng et al., ICCV 2023
(ZSCL, arXiv 2303.06628). Ours: special tokens are not drawn, the training batch is
reused by default, and ``student_text``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.common.randomness import named_seed, seeded
from avalanche_clip.training.methods.tic import Sequential
from avalanche_clip.training.methods.vr_lwf.pseudo_texts import (
    draw_token_ids,
    special_tokens,
)
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.distillation import (
    DistillationPlugin,
    encode_student,
    own_share,
    similarities,
)
from avalanche_clip.training.templates.frozen_texts import encode_texts
from avalanche_clip.training.templates.options import further_options
from avalanche_clip.training.templates.order import worker_options
from avalanche_clip.training.templates.reference_data import (
    ReferenceImages,
    ReferenceSampler,
    ReferenceTexts,
)


@dataclass(eq=False, kw_only=True)
class VocabularyReplayPlugin(DistillationPlugin, supports_distributed=True):
    """Distil similarities of images to pseudo texts from the previous model.

    Pseudo texts are sentences of random tokens. With ``R`` the teacher's
    features of them, ``T`` and ``S`` the teacher's and the student's logits
    ``scale * images @ R.T`` ``(B, M)`` and ``D`` the
    :func:`~avalanche_clip.losses.temperature_distillation_loss`, the plugin adds
    ``image_weight * D(T, S) + text_weight * D(T.T, S.T)`` over the global batch.
    No gradient reaches the text tower, the teacher or the scale by these terms.
    Their values are cross-entropies, far from zero even when student and teacher
    agree; do not stop early by them.

    The teacher is the model before the experience. In the first one it teaches
    if the model came with weights. With both weights 0 the plugin only freezes
    the logit scale.

    Memory: one copy of the weights and ``R``. Time: ``num_texts`` texts of the
    teacher per experience and one batch of it per step, booked as ``"teacher"``;
    a second batch or texts that the student encodes are booked as
    ``"reference"``.

    Random draws come from own generators, seeded by run, experience and
    iteration; global ones stay where they are.

    :param num_texts: pseudo texts ``M``.
    :param text_length: random tokens per pseudo text (not for ``texts``).
    :param image_weight: of the term over texts, one row per image, ``>= 0``;
        class-incremental runs of the source use 5 for both.
    :param text_weight: of the term over the images of the batch, one row per
        text, ``>= 0``; 0 gives the paper's image-only form. Its size depends on
        the batch, and it is constant for a batch of one.
    :param temperature: of the softmax on both sides, ``> 0``.
    :param distill_batch: ``"same"`` reuses the features of the training batch;
        ``"separate"`` draws a second batch of the experience's own data, with
        its evaluation transform and in another order (the source).
    :param distill_batch_size: images of that batch per process; default those
        of the training batch.
    :param student_text: let the student encode the pseudo texts for its side,
        with gradients (``M`` more texts per step).
    :param allow_special: draw from the whole vocabulary (the source); an end
        token inside a sentence ends it early.
    :param redraw: ``"experience"`` keeps the pseudo texts for an experience,
        ``"iteration"`` draws and encodes new ones at each step.
    :param texts: sentences to use instead of random tokens; when there are more
        than ``num_texts``, that many are drawn.
    :param teach_first_experience: None teaches in the first experience when
        ``model.pretrained`` is set; True and False decide.
    :param freeze_logit_scale: stop training the logit scale, from the first
        experience on. The scale takes no gradient from the terms in any case.
    :raises ValueError: for values outside these ranges.
    :raises TypeError: if ``texts`` holds something else than strings.
    """

    weights = ("image_weight", "text_weight")
    only_one = True

    num_texts: int = 1000
    text_length: int = 10
    image_weight: float = 1.0
    text_weight: float = 1.0
    temperature: float = 2.0
    distill_batch: str = "same"
    distill_batch_size: int | None = None
    student_text: bool = False
    allow_special: bool = False
    redraw: str = "experience"
    texts: Sequence[str] | None = None
    teach_first_experience: bool | None = None
    freeze_logit_scale: bool = True

    def __post_init__(self) -> None:
        require_choice("distill_batch", self.distill_batch, ("same", "separate"))
        require_choice("redraw", self.redraw, ("experience", "iteration"))
        for name in ("num_texts", "text_length", "distill_batch_size"):
            value = getattr(self, name)
            if name != "distill_batch_size" or value is not None:
                as_size(value, name)
        for name in ("image_weight", "text_weight"):
            as_finite(getattr(self, name), name, low=0)
        as_finite(self.temperature, "temperature", above=0)
        if self.distill_batch == "same" and self.distill_batch_size is not None:
            raise ValueError(
                f"distill_batch_size={self.distill_batch_size} is for a second batch; "
                "pass distill_batch='separate', or leave it out."
            )
        self._check_texts()
        super().__init__()
        self._workers = 0
        self._forget()

    def _check_texts(self) -> None:
        if self.texts is None:
            return
        if isinstance(self.texts, str) or not self.texts:
            raise ValueError(f"texts={self.texts!r}; pass a list of sentences.")
        self.texts = tuple(self.texts)
        wrong = [t for t in self.texts if not isinstance(t, str)]
        if wrong:
            raise TypeError(f"texts holds {wrong[0]!r}; all must be strings.")
        if self.allow_special:
            raise ValueError(
                "allow_special=True is for random tokens, but texts are given; leave "
                "one of them out."
            )
        if self.redraw == "iteration" and len(self.texts) <= self.num_texts:
            raise ValueError(
                f"redraw='iteration' draws num_texts={self.num_texts} of the "
                f"{len(self.texts)} texts, which are always all of them; choose a "
                "smaller num_texts, or redraw='experience'."
            )

    def _forget(self) -> None:
        """Drop what belongs to one experience."""
        #: token ids ``(M, L)`` of the pseudo texts in use; None outside steps
        self.token_ids: Tensor | None = None
        #: the teacher's features ``R`` of them, ``(M, D)``
        self.text_features: Tensor | None = None
        self._drawn_at: int | None = None
        self._sampler: ReferenceSampler | None = None

    # ------------------------------------------------------------------- hooks
    def check_compatible(self, strategy: Any) -> None:
        """Raise if pseudo texts cannot be made for the model.

        :raises ValueError: for a model without the parts needed, a tokenizer
            whose rows have another form, or texts that are too long.
        """
        model = strategy.model
        needed = ("encode_image", "encode_text", "tokenizer", "logit_scale")
        missing = [name for name in needed if not hasattr(model, name)]
        if missing:
            raise ValueError(
                f"VocabularyReplayPlugin needs a model with {', '.join(needed)}, such "
                f"as a DualEncoder; {type(model).__name__} lacks {missing}."
            )
        if self.in_use and self.texts is None:
            self._random_ids(model, 1, torch.Generator().manual_seed(0))

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze the logit scale, just before the optimiser is rebuilt."""
        if self.freeze_logit_scale:
            strategy.model.logit_scale.requires_grad_(False)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start with nothing; pseudo texts are drawn in the first step."""
        self._forget()
        self._workers = worker_options(kwargs).get("num_workers", 0)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the distillation terms."""
        if not self.teaches(strategy):
            return
        teacher_texts = self._references(strategy)
        step = strategy.clock.train_exp_iterations
        seed = self._seed(strategy, "pseudo students", step, distributed.rank())
        with seeded(seed, strategy.device):
            student_texts = self._student_texts(strategy, teacher_texts)
            students, teachers = self._image_features(strategy)
        self.warn_frozen("student_text=True", students, student_texts)
        scale = strategy.global_features.logit_scale.detach()
        targets = similarities(teachers, teacher_texts, scale)
        logits = similarities(students, student_texts, scale)
        self.add_terms(strategy, "vr", (targets, logits), (targets, logits))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Drop the pseudo texts and their features."""
        self._forget()

    # ------------------------------------------------------------ pseudo texts
    def draw_texts(self, strategy: Any, draw: int = 0) -> Tensor:
        """Draw the pseudo texts of the running experience.

        They depend on seed, experience and ``draw`` only. The vocabulary is the
        teacher's, which a student that grows has outgrown.

        :param strategy: a strategy whose teacher exists.
        :param draw: iteration of the experience with ``redraw="iteration"``.
        :return: token ids ``(M, L)``, cut behind the end token for causal towers.
        """
        model = strategy.teachers.get("previous").model
        seed = self._seed(strategy, "pseudo texts", draw)
        generator = torch.Generator().manual_seed(seed)
        if self.texts is None:
            ids = self._random_ids(model, self.num_texts, generator)
            causal = getattr(model, "is_causal_text", False)
            return ids[:, : self.text_length + 2] if causal else ids
        texts = list(self.texts)
        if len(texts) > self.num_texts:
            order = torch.randperm(len(texts), generator=generator)
            texts = [texts[i] for i in order[: self.num_texts].tolist()]
        return model.tokenizer(texts)

    def _random_ids(self, model: Any, count: int, generator: torch.Generator) -> Tensor:
        tokens = special_tokens(model.tokenizer)
        excluded: set[int] = set()
        if not self.allow_special:
            excluded = {tokens.sot_id, tokens.eot_id}
            if not getattr(model, "is_causal_text", False):
                # Towers that see the whole row may mask what equals padding.
                excluded.add(tokens.pad_id)
        return draw_token_ids(
            count,
            self.text_length,
            tokens,
            width=model.context_length,
            generator=generator,
            excluded=excluded,
        )

    def _references(self, strategy: Any) -> Tensor:
        """The teacher's text features, computed when there are none yet."""
        per_step = self.redraw == "iteration"
        draw = strategy.clock.train_exp_iterations if per_step else 0
        if self._drawn_at != draw or self.text_features is None:
            self.token_ids = self.draw_texts(strategy, draw)
            self.text_features = self._teacher_texts(strategy, self.token_ids)
            self._drawn_at = draw
        return self.text_features

    def _teacher_texts(self, strategy: Any, ids: Tensor) -> Tensor:
        texts = ReferenceTexts(ids)
        if self.redraw == "experience":
            return strategy.teachers.text_features("previous", texts)
        strategy.compute.spend("teacher", images=0, texts=len(ids))
        return encode_texts(strategy, strategy.teachers.get("previous").model, texts)

    def _student_texts(self, strategy: Any, teacher_texts: Tensor) -> Tensor:
        if not self.student_text:
            return teacher_texts
        ids = self.token_ids
        assert ids is not None
        own = own_share(ids).to(strategy.device)
        features = encode_student(strategy, strategy.model.encode_text, own)
        total = len(own) * distributed.world_size()
        strategy.compute.spend("reference", images=0, texts=total)
        return distributed.gather_rows(features)[: len(ids)]

    # ------------------------------------------------------------------ images
    def _image_features(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """Features of the student and of the teacher, of the global batch."""
        if self.distill_batch == "same":
            known = self.teacher_output(strategy)
            return strategy.global_features.image_features, known.image_features
        images = self._next_images(strategy)
        ours = encode_student(strategy, strategy.model.encode_image, images)
        with torch.no_grad(), strategy.autocast():
            theirs = strategy.teachers.get("previous").model.encode_image(images)
        assert self._sampler is not None
        order = self._sampler.order
        total = order.order.batch_size * order.copies
        for kind in ("reference", "teacher"):
            strategy.compute.spend(kind, images=total, texts=0)
        return order.join(ours), order.join(theirs)

    def _next_images(self, strategy: Any) -> Tensor:
        """The second batch of this step, this process's part."""
        if self._sampler is None:
            images = ReferenceImages(
                strategy.experience.dataset, num_workers=self._workers
            )
            size = self.distill_batch_size or strategy.train_mb_size
            size *= distributed.world_size()
            seed = self._seed(strategy, "pseudo images")
            self._sampler = ReferenceSampler.of(strategy, images, size, seed)
        step = strategy.clock.train_exp_iterations
        batch = self._sampler.batch(step, strategy.planned_iterations)
        return batch.images.to(strategy.device, non_blocking=True)

    # ------------------------------------------------------------------- state
    def _seed(self, strategy: Any, *parts: int | str) -> int:
        return named_seed(strategy.seed, strategy.visits.seed_number, *parts)

    def state_dict(self) -> dict[str, Any]:
        """Return the pseudo texts in use and the teacher's features of them.

        Between experiences there are none. Generators and the order of the
        second batch follow from seed, experience and iteration, so they need no
        place here.
        """
        return {
            "token_ids": self.token_ids,
            "text_features": self.text_features,
            "drawn_at": self._drawn_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self._forget()
        self.token_ids = state["token_ids"]
        self.text_features = state["text_features"]
        self._drawn_at = state["drawn_at"]


def vr_lwf_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with the values of the multi-domain experiments, without decay."""
    return torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.999), weight_decay=0.0)


class VRLwF(Sequential):
    """Sequential training that keeps similarities to random sentences.

    The logit scale is frozen. The source trains 1,000 iterations per experience
    (``budget_iterations=1000``) and warms up in each (``warmup_iterations=100,
    later_warmup_iterations=100``); that is left to the user, since the warm-up
    must fit into the budget. Label smoothing has no counterpart for pairs.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param optimizer: default AdamW with learning rate 1e-5 and, unless
        ``param_groups`` are given, no weight decay.
    :param param_groups: see :class:`CLIPTemplate`.
    :param train_mb_size: pairs per step and process.
    :param num_texts: pseudo texts.
    :param image_weight: weight of the term over texts.
    :param text_weight: weight of the term over images; 0 is the paper's form.
    :param plugin_options: further options of :class:`VocabularyReplayPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    _default_optimizer = staticmethod(vr_lwf_optimizer)
    _default_groups = staticmethod(optim.one_group)
    former_options = "replay"

    def __init__(
        self,
        *,
        train_mb_size: int = 64,
        num_texts: int = 1000,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        plugin_options: Mapping[str, Any] | None = None,
        replay: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        weights = {"image_weight": image_weight, "text_weight": text_weight}
        own: dict[str, Any] = {"num_texts": num_texts, **weights}
        plugin = VocabularyReplayPlugin
        further = further_options(self, plugin, plugin_options, own, replay)
        self._own = [plugin(**own, **further)]
        super().__init__(train_mb_size=train_mb_size, **kwargs)
