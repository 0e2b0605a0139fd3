"""Distil a teacher on reference data: the main part of ZSCL, and its baselines.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), and their code. Both
terms use the teacher's text features there (``text_side="teacher"``). That
code encodes all sentences at each step; here they are encoded once, and so is
each image that does not change, which is the same in exact arithmetic.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.common.feature_table import FeatureTable
from avalanche_clip.common.randomness import named_seed
from avalanche_clip.training.templates.distillation import (
    DistillationPlugin,
    encode_student,
    similarities,
)
from avalanche_clip.training.templates.reference_data import (
    ReferenceImages,
    ReferenceSampler,
    ReferenceTexts,
    SharedOrder,
)

TEACHERS = ("initial", "previous")
TEXT_SIDES = ("teacher", "student")
CURRENT = "current"


@dataclass(eq=False, repr=False)
class ReferenceDistillationPlugin(DistillationPlugin, supports_distributed=True):
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
    :param batch_size: reference images per step, over all processes; with
        ``text_side="student"`` as many sentences.
    :param teach_first_experience: whether there is a term in the first
        experience; None: if the model has pretrained weights.
    :param train_logit_scale: False freezes the logit scale (original), as
        :class:`FrozenLogitScalePlugin` does, for good.
    :raises ValueError: for a value outside its range; for an initial teacher
        with random weights, unless ``teach_first_experience`` is given.
    """

    weights = ("image_weight", "text_weight")

    reference_images: InitVar[Any]
    reference_texts: InitVar[Any]
    _: KW_ONLY
    image_weight: float = 1.0
    text_weight: float = 1.0
    temperature: float = 2.0
    text_side: str = "teacher"
    teacher: str = "initial"
    batch_size: int = 64
    teach_first_experience: bool | None = None
    train_logit_scale: bool = False

    def __post_init__(self, reference_images: Any, reference_texts: Any) -> None:
        super().__init__()
        as_finite(self.image_weight, "image_weight", low=0)
        as_finite(self.text_weight, "text_weight", low=0)
        as_finite(self.temperature, "temperature", above=0)
        as_size(self.batch_size, "batch_size")
        require_choice("text_side", self.text_side, TEXT_SIDES)
        require_choice("teacher", self.teacher, TEACHERS)
        self.images = self._unbound = _wrapped(reference_images, ReferenceImages)
        self.texts = _wrapped(reference_texts, ReferenceTexts)
        self.text_features: Tensor | None = None
        """The teacher's features ``(N, D)`` of all sentences."""
        self.table: FeatureTable | None = None
        """The teacher's features of the images that it has seen."""
        self._prints: dict[str, str | None] = {"images": None, "texts": None}
        self._sampler: ReferenceSampler | None = None
        self._sentences: SharedOrder | None = None

    # ----------------------------------------------------------------- hooks
    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze the logit scale, just before the optimiser is rebuilt."""
        if self.in_use and not self.train_logit_scale:
            strategy.model.logit_scale.requires_grad_(False)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Encode the sentences with the teacher, and set up the order of images."""
        self._sampler = self._sentences = None
        if not self.teaches(strategy):
            return
        teacher = strategy.teachers.get(self.teacher)
        if self._unbound is not None:
            images = self.images = self._unbound.bind(strategy.model)
            found = f"{teacher.fingerprint('image')}:{strategy.precision}"
            if self.table is None or self._prints["images"] != found:
                size = images.cache_bytes if images.fixed else 0
                self.table = FeatureTable(len(images), max_bytes=size)
                self._prints["images"] = found
            seed = named_seed(strategy.seed, "reference images")
            self._sampler = ReferenceSampler.of(strategy, images, self.batch_size, seed)
        if self.texts is not None:
            self._prepare_texts(strategy, teacher)

    def _prepare_texts(self, strategy: Any, teacher: Any) -> None:
        texts: ReferenceTexts = self.texts
        found = texts.fingerprint()
        if self._prints["texts"] not in (None, found):
            raise ValueError(
                "The stored run had other reference texts; give the same ones."
            )
        self._prints["texts"] = found
        self.text_features = strategy.teachers.text_features(self.teacher, texts)
        if self.text_side == "student" and self.text_weight > 0:
            self._sentences = SharedOrder(
                len(texts),
                self.batch_size,
                seed=named_seed(strategy.seed, "reference texts"),
                experience=strategy.visits.seed_number,
            )

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add both terms."""
        if not self.teaches(strategy):
            return
        scale = strategy.global_features.logit_scale
        teacher, student = self._image_features(strategy)
        if self.text_side == "teacher":
            self.warn_frozen("text_side='student'", student)
        texts = self.text_features
        if self.texts is None:
            texts = self.teacher_output(strategy).text_features
        assert texts is not None
        targets = similarities(teacher, texts, scale)
        image = text = targets, similarities(student, texts, scale)
        if self.text_side == "student" and self.text_weight > 0:
            rows, ours = self._student_texts(strategy)
            text = targets[:, rows], similarities(teacher, ours, scale)
        self.add_terms(strategy, "reference", image, text)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of the readers, and of what the next teacher does not share."""
        self._sampler = self._sentences = None
        if self.teacher == "previous":
            self.table, self.text_features = None, None

    # -------------------------------------------------------------- features
    def _image_features(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """Features ``(R, D)`` of the reference images, teacher's and student's."""
        if self._sampler is None:
            known = self.teacher_output(strategy)
            return known.image_features, strategy.global_features.image_features
        step = strategy.clock.train_exp_iterations
        indices, part, images = self._sampler.batch(step, strategy.planned_iterations)
        images = images.to(strategy.device, non_blocking=True)
        join = self._sampler.order.join
        teacher = self._teacher_images(strategy, indices, part, images)
        if self.image_weight == 0 and self.text_side == "student":
            return teacher, teacher  # no term asks for the student's
        student = join(encode_student(strategy, strategy.model.encode_image, images))
        spent = len(indices) * self._sampler.order.copies
        strategy.compute.spend("reference", images=spent, texts=0)
        return teacher, student

    @torch.no_grad()
    def _teacher_images(
        self, strategy: Any, indices: Tensor, part: slice, images: Tensor
    ) -> Tensor:
        """Stored features, completed by those of images not seen before."""
        assert self.table is not None and self._sampler is not None
        order = self._sampler.order
        stored = self.table.get(indices)
        if stored is not None:
            return stored
        known = torch.from_numpy(self.table.known(indices))
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
            stored = self.table.get(indices[at])
            assert stored is not None
            rows[at.to(rows.device)] = stored
        self.table.put(indices, rows)
        new = int((~known).sum()) * order.copies
        strategy.compute.spend("teacher", images=new, texts=0)
        return rows

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
        strategy.compute.spend("reference", images=0, texts=len(rows) * order.copies)
        return rows.to(ours.device), ours

    # ----------------------------------------------------------------- state
    def state_dict(self) -> dict[str, Any]:
        """Return the stored image features and what tells the texts apart.

        Image features depend on their batch in the last bits, so a resumed run
        must use the same ones; text features are computed anew.
        """
        return {
            "table": None if self.table is None else self.table.state_dict(),
            "images": None if self.images is None else len(self.images),
            "prints": dict(self._prints),
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
        self._prints = dict(state["prints"])
        self.table = None
        if state["table"] is not None and self.images is not None:
            self.table = FeatureTable(have or 0, max_bytes=self.images.cache_bytes)
            self.table.load_state_dict(state["table"])


def _wrapped(given: Any, kind: type) -> Any:
    """Reference data in their class, None for the current batch."""
    if isinstance(given, str) and given == CURRENT:
        return None
    return given if isinstance(given, kind) else kind(given)
