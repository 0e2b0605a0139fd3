"""Distil a teacher on reference data: the main part of ZSCL, and its baselines.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), and their code. Both
terms use the teacher's text features there (``text_side="teacher"``). That
code encodes all sentences at each step; here they are encoded once, and so is
each image that does not change, which is the same in exact arithmetic.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from avalanche_clip import distributed
from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.losses import temperature_distillation_loss
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.reference_data import (
    IMAGE_ORDER,
    TEXT_ORDER,
    FeatureStore,
    ReferenceImages,
    ReferenceSampler,
    ReferenceTexts,
    SharedOrder,
    order_seed,
)

TEACHERS = ("initial", "previous")
TEXT_SIDES = ("teacher", "student")
CURRENT = "current"


class ReferenceDistillationPlugin(MethodPlugin, supports_distributed=True):
    """Keep a teacher's similarities between reference images and sentences.

    With ``s`` the student's logit scale, ``X`` the reference images of the
    step and ``Y`` all sentences: ``P = s f0(X) g0(Y)^T`` of the teacher and
    ``Q = s f(X) g0(Y)^T`` of the student, ``(R, N)``. Adds ``image_weight *
    D(P, Q) + text_weight * D(P^T, Q^T)``, with ``D`` of
    :func:`temperature_distillation_loss`. No gradient reaches the student's
    text tower, unless ``text_side="student"``: then the second term compares
    ``P`` and ``s f0(X) g(Y')^T`` on a random batch ``Y'`` of sentences.

    Images and sentences need no labels and no pairing. The images of step
    ``k`` are a function of the seed, the experience and ``k``. Processes share
    the reference batch when its size is a multiple of their number; else each
    of them takes all of it. With ``accumulation_steps`` the reference images
    go through the student in as many parts, with their activations computed
    again in the backward pass. Batch norms see the reference images too.

    Memory: one copy of the weights, the teacher's text features ``(N, D)``, and
    at most ``cache_bytes`` of its image features. Time: per step one forward
    and backward pass of the reference images, booked as ``"reference"``, and
    one forward pass of those that the teacher has not seen, booked as
    ``"teacher"``, like the sentences.

    :param reference_images: :class:`ReferenceImages`, or what it takes; or
        ``"current"`` for the images of the training batch.
    :param reference_texts: :class:`ReferenceTexts`, or what it takes; or
        ``"current"`` for the texts of the training batch.
    :param image_weight: of the term over sentences per image, ``>= 0``.
    :param text_weight: of the term over images per sentence, ``>= 0``. With
        both weights 0 the plugin does nothing.
    :param temperature: divides the logits, ``> 0``.
    :param text_side: ``"teacher"`` (original) or ``"student"``.
    :param teacher: ``"initial"``, the weights before the first experience
        (ZSCL), or ``"previous"``, before the running one (LwF).
    :param batch_size: reference images per step, over all processes.
    :param sentence_batch: sentences per step with ``text_side="student"``.
    :param seed: of the order of the reference data; default the strategy's.
    :param teach_first_experience: whether there is a term in the first
        experience; None: if the model has pretrained weights.
    :param train_logit_scale: False freezes the logit scale (original), as
        :class:`FrozenLogitScalePlugin` does, for good.
    :raises ValueError: for a value outside its range; for an initial teacher
        with random weights, unless ``teach_first_experience`` is given.
    """

    def __init__(
        self,
        reference_images: Any,
        reference_texts: Any,
        *,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        temperature: float = 2.0,
        text_side: str = "teacher",
        teacher: str = "initial",
        batch_size: int = 64,
        sentence_batch: int = 64,
        seed: int | None = None,
        teach_first_experience: bool | None = None,
        train_logit_scale: bool = False,
    ):
        super().__init__()
        for name, value in (
            ("image_weight", image_weight),
            ("text_weight", text_weight),
        ):
            as_finite(value, name, low=0)
        as_finite(temperature, "temperature", above=0)
        for name, size in (
            ("batch_size", batch_size),
            ("sentence_batch", sentence_batch),
        ):
            as_size(size, name)
        _check_choice("text_side", text_side, TEXT_SIDES)
        _check_choice("teacher", teacher, TEACHERS)
        self._given = (
            _wrapped(reference_images, ReferenceImages),
            _wrapped(reference_texts, ReferenceTexts),
        )
        self.images, self.texts = self._given
        self.image_weight = image_weight
        self.text_weight = text_weight
        self.temperature = temperature
        self.text_side = text_side
        self.teacher = teacher
        self.batch_size = batch_size
        self.sentence_batch = sentence_batch
        self.seed = seed
        self.teach_first_experience = teach_first_experience
        self.train_logit_scale = train_logit_scale
        self.text_features: Tensor | None = None
        """The teacher's features ``(N, D)`` of all sentences."""
        self.store: FeatureStore | None = None
        self._run: weakref.ref[Any] | None = None
        self._inside = False  # an experience, whose state may be loaded now
        self._fingerprint: str | None = None
        self._warned = False
        self._sampler: ReferenceSampler | None = None
        self._sentences: SharedOrder | None = None

    # -------------------------------------------------------------- settings
    def _needed(self, strategy: Any) -> bool:
        """Whether the running experience needs the teacher."""
        if self.image_weight == self.text_weight == 0:
            return False
        # The initial weights must be copied before the first experience.
        return self.teacher == "initial" or self._active(strategy)

    def _active(self, strategy: Any) -> bool:
        """Whether the running experience is taught."""
        if self.image_weight == self.text_weight == 0:
            return False
        if strategy.clock.train_exp_counter > 0:
            return True
        first = self.teach_first_experience
        return _is_pretrained(strategy) if first is None else first

    def teacher_kinds(self, strategy: Any) -> tuple[str, ...]:
        """Ask for the teacher before any plugin replaces the weights."""
        return (self.teacher,) if self._needed(strategy) else ()

    def check_compatible(self, strategy: Any) -> None:
        """Raise when the initial model has nothing to teach."""
        unknown = self.teach_first_experience is None and not _is_pretrained(strategy)
        if self.teacher == "initial" and unknown and self._needed(strategy):
            raise ValueError(
                "ReferenceDistillationPlugin keeps what the initial model knows, but "
                "model.pretrained is None: its weights are random. Load pretrained "
                "weights, use teacher='previous', or give teach_first_experience=True "
                "if the weights are worth keeping."
            )

    # ----------------------------------------------------------------- hooks
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze the logit scale, just before the optimiser is rebuilt."""
        if not self.train_logit_scale and self.image_weight + self.text_weight > 0:
            strategy.model.logit_scale.requires_grad_(False)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Encode the sentences with the teacher, and set up the order of images."""
        self._sampler = self._sentences = None
        if self._run is not None and self._run() is not strategy:
            self._forget()
        self._run, self._inside = weakref.ref(strategy), True
        if not self._active(strategy):
            return
        strategy.teachers.get(self.teacher)
        if self.images is not None:
            images = self.images = self.images.bind(strategy.model)
            if self.teacher == "previous" or self.store is None:
                size = images.cache_bytes if images.fixed else 0
                self.store = FeatureStore(len(images), size)
            self._sampler = ReferenceSampler(
                images,
                self._order(strategy, len(images), self.batch_size, IMAGE_ORDER),
                strategy.device.type == "cuda",
            )
        if self.texts is not None:
            self._prepare_texts(strategy)

    def _forget(self) -> None:
        """Drop what belongs to an earlier run with this plugin."""
        self.images, self.texts = self._given
        self.store, self.text_features = None, None
        self._fingerprint = None
        self._warned = False

    def _prepare_texts(self, strategy: Any) -> None:
        given: ReferenceTexts = self._given[1]
        found = given.fingerprint()
        if self._fingerprint not in (None, found):
            raise ValueError(
                "The stored run had other reference texts; give the same ones."
            )
        self._fingerprint = found
        # A callable draws anew when the vocabulary of the teacher has grown.
        tokenizer = strategy.teachers.get(self.teacher).model.tokenizer
        texts = self.texts = given.bind(tokenizer)
        self.text_features = strategy.teachers.text_features(self.teacher, texts)
        if self.text_side == "student" and self.text_weight > 0:
            self._sentences = self._order(
                strategy, len(texts), self.sentence_batch, TEXT_ORDER
            )

    def _order(self, strategy: Any, count: int, size: int, kind: int) -> SharedOrder:
        seed = strategy.seed if self.seed is None else self.seed
        return SharedOrder(
            count,
            size,
            seed=order_seed(seed, kind),
            experience=strategy.visits.seed_number,
        )

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add both terms."""
        if not self._active(strategy):
            return
        scale = strategy.global_features.logit_scale
        teacher, student = self._image_features(strategy)
        if self.text_side == "teacher" and not student.requires_grad:
            self._warn_frozen()
        texts = self._text_features(strategy)
        options = {"temperature": self.temperature}
        targets = scale * teacher @ texts.T
        if self._needs_images:
            logits = scale * student @ texts.T
        if self.image_weight > 0:
            loss = temperature_distillation_loss(targets, logits, **options)
            strategy.add_loss("reference_image", self.image_weight * loss)
        if self.text_weight > 0:
            if self.text_side == "student":
                rows, ours = self._student_texts(strategy)
                targets, logits = targets[:, rows], scale * teacher @ ours.T
            loss = temperature_distillation_loss(targets.T, logits.T, **options)
            strategy.add_loss("reference_text", self.text_weight * loss)

    def _warn_frozen(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "ReferenceDistillationPlugin(text_side='teacher') reaches the image "
                "tower only, and nothing in it is trained: the terms cost time and "
                "change nothing. Use text_side='student', or leave the plugin out.",
                stacklevel=3,
            )

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of the readers, and of what the next teacher does not share."""
        self._sampler = self._sentences = None
        self._inside = False
        if self.teacher == "previous":
            self.store, self.text_features = None, None

    # -------------------------------------------------------------- features
    @property
    def _needs_images(self) -> bool:
        """Whether a term asks for the student's features of the images."""
        return self.image_weight > 0 or self.text_side == "teacher"

    def _image_features(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """Features ``(R, D)`` of the reference images, teacher's and student's."""
        if self._sampler is None:
            known = strategy.teachers.get(self.teacher).features(strategy.mb_x)
            return known.image_features, strategy.global_features.image_features
        step = strategy.clock.train_exp_iterations
        indices, part, images = self._sampler.batch(step, strategy.planned_iterations)
        images = images.to(strategy.device, non_blocking=True)
        join = self._sampler.order.join
        teacher = self._teacher_images(strategy, indices, part, images)
        if not self._needs_images:
            return teacher, teacher
        student = join(_encode_parts(strategy, images))
        # Without shares every process takes all of the batch.
        copies = 1 if self._sampler.order.shared else distributed.world_size()
        strategy.compute.spend("reference", images=len(indices) * copies, texts=0)
        return teacher, student

    @torch.no_grad()
    def _teacher_images(
        self, strategy: Any, indices: Tensor, part: slice, images: Tensor
    ) -> Tensor:
        """Stored features, completed by those of images not seen before."""
        assert self.store is not None and self._sampler is not None
        order = self._sampler.order
        known = self.store.known(indices)
        if bool(known.all()):
            return self.store.get(indices)
        model = strategy.teachers.get(self.teacher).model
        ours = (~known[part]).nonzero().squeeze(1).to(images.device)
        width = strategy.global_features.image_features.shape[1]
        rows = images.new_zeros(len(images), width, dtype=torch.float32)
        if len(ours):
            with strategy.autocast():
                rows[ours] = model.encode_image(images[ours]).float()
        rows = order.join(rows)
        if bool(known.any()):
            at = known.nonzero().squeeze(1)
            rows[at.to(rows.device)] = self.store.get(indices[at])
        self.store.put(indices, rows)
        copies = 1 if order.shared else distributed.world_size()
        new = int((~known).sum())
        strategy.compute.spend("teacher", images=new * copies, texts=0)
        return rows

    def _text_features(self, strategy: Any) -> Tensor:
        """The teacher's features of the sentences, ``(N, D)``."""
        if self.texts is not None:
            assert self.text_features is not None
            return self.text_features
        known = strategy.teachers.get(self.teacher).features(strategy.mb_x)
        return known.text_features

    def _student_texts(self, strategy: Any) -> tuple[Any, Tensor]:
        """Rows of some sentences, and the student's features of them."""
        if self._sentences is None:
            return slice(None), strategy.global_features.text_features
        order = self._sentences
        rows = next(order.indices(strategy.clock.train_exp_iterations, 1))
        tokenizer = strategy.teachers.get(self.teacher).model.tokenizer
        tokens = self.texts.tokens(rows[order.part], tokenizer).to(strategy.device)
        with strategy.autocast():
            ours = order.join(strategy.model.encode_text(tokens))
        copies = 1 if order.shared else distributed.world_size()
        strategy.compute.spend("reference", images=0, texts=len(rows) * copies)
        return rows.to(ours.device), ours

    # ----------------------------------------------------------------- state
    def state_dict(self) -> dict[str, Any]:
        """Return the stored image features and what tells the texts apart.

        Image features depend on their batch in the last bits, so a resumed run
        must use the same ones; text features are computed anew.
        """
        store = None if self.store is None else self.store.state_dict()
        return {
            "store": store,
            "images": None if self.images is None else len(self.images),
            "texts": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned.

        :raises ValueError: if the number of reference images differs; other
            texts are found when training begins.
        """
        have = None if self.images is None else len(self.images)
        if state["images"] != have:
            raise ValueError(
                f"The stored run had {state['images']} reference images, this one "
                f"{have}; give the same."
            )
        if not self._inside:  # nothing of an earlier run may stay
            self._forget()
            self._run = None
        self._fingerprint = state["texts"]
        self.store = None
        if state["store"] is not None and self.images is not None:
            self.store = FeatureStore(have or 0, self.images.cache_bytes)
            self.store.load_state_dict(state["store"])


class FrozenLogitScalePlugin(MethodPlugin, supports_distributed=True):
    """Do not train the logit scale: it keeps its value, bit for bit.

    The parameter is frozen just before the optimiser is rebuilt for an
    experience, which so leaves it out.
    """

    keeps_per_weight_state = False

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze the parameter."""
        strategy.model.logit_scale.requires_grad_(False)


def _encode_parts(strategy: Any, images: Tensor) -> Tensor:
    """The student's features of images, in as many parts as the task batch."""
    with strategy.autocast():
        if strategy.accumulation_steps == 1:
            return strategy.model.encode_image(images)
        parts = images.tensor_split(min(strategy.accumulation_steps, len(images)))
        return torch.cat(
            [
                checkpoint(strategy.model.encode_image, part, use_reentrant=False)
                for part in parts
            ]
        )


def _is_pretrained(strategy: Any) -> bool:
    return getattr(strategy.model, "pretrained", None) is not None


def _wrapped(given: Any, kind: type) -> Any:
    """Reference data in their class, None for the current batch."""
    if isinstance(given, str) and given == CURRENT:
        return None
    return given if isinstance(given, kind) else kind(given)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    require_choice(name, value, allowed)
