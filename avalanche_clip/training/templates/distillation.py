"""What all methods with a frozen teacher decide in the same way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from avalanche_clip import distributed
from avalanche_clip.losses import temperature_distillation_loss
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.templates.contract import MethodPlugin


class DistillationPlugin(MethodPlugin, supports_distributed=True):
    """Base of plugins that add terms by which a frozen teacher is kept.

    There are terms from the second experience on; in the first one if the model
    came with pretrained weights, or as ``teach_first_experience`` says. With all
    weights 0 no teacher is made.
    """

    weights: ClassVar[tuple[str, ...]]
    """Names of the attributes that weigh the terms."""
    teacher = "previous"
    """Which model teaches, see :class:`TeacherService`."""
    teach_first_experience: bool | None = None
    """Whether there are terms in the first experience; None: if pretrained."""
    temperature: float
    """Of the softmax on both sides, see :meth:`add_terms`."""
    _warned = False

    @property
    def in_use(self) -> bool:
        """Whether a term has a weight."""
        return any(getattr(self, name) > 0 for name in self.weights)

    def teaches(self, strategy: Any) -> bool:
        """Whether there are terms in the running experience."""
        if not self.in_use or strategy.clock.train_exp_counter > 0:
            return self.in_use
        first = self.teach_first_experience
        return is_pretrained(strategy) if first is None else first

    def teacher_kinds(self, strategy: Any) -> tuple[str, ...]:
        """Ask for the teacher before any plugin replaces the weights."""
        # The initial weights must be copied before the first experience.
        early = self.teacher == "initial" and self.in_use
        return (self.teacher,) if early or self.teaches(strategy) else ()

    def check_compatible(self, strategy: Any) -> None:
        """Raise when the initial model has nothing to teach."""
        known = self.teach_first_experience is not None or is_pretrained(strategy)
        if self.in_use and self.teacher == "initial" and not known:
            raise ValueError(
                f"{type(self).__name__}(teacher='initial') keeps what the initial "
                "model knows, but model.pretrained is None: its weights are random. "
                "Load pretrained weights, use teacher='previous', or give "
                "teach_first_experience if the weights are worth keeping."
            )

    def teacher_output(self, strategy: Any) -> CLIPOutput:
        """The teacher's features of the current batch."""
        output: CLIPOutput = strategy.teachers.get(self.teacher).features(strategy.mb_x)
        return output

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the teacher belongs to the strategy."""
        return {}

    def add_terms(self, strategy: Any, name: str, image: Any, text: Any) -> None:
        """Add the distances of both directions, weighted.

        :param name: of the terms, before ``_image`` and ``_text``.
        :param image: targets and logits ``(B, M)`` of the term over texts.
        :param text: those of the term over images.
        """
        for side, pair in (("image", image), ("text", text)):
            weight = getattr(self, f"{side}_weight")
            if weight > 0:
                pair = [matrix.T for matrix in pair] if side == "text" else pair
                distance = temperature_distillation_loss(
                    *pair, temperature=self.temperature
                )
                strategy.add_loss(f"{name}_{side}", weight * distance)

    def warn_frozen(self, remedy: str, *students: Tensor) -> None:
        """Say once that the terms reach nothing that is trained.

        :param remedy: setting that reaches more.
        :param students: features that the terms are computed from.
        """
        if self._warned or any(student.requires_grad for student in students):
            return
        self._warned = True
        warnings.warn(
            f"{type(self).__name__} reaches the image tower only, and nothing in it "
            f"is trained: the terms cost time and change nothing. Use {remedy}, or "
            "leave the plugin out.",
            stacklevel=3,
        )


class FrozenLogitScalePlugin(MethodPlugin, supports_distributed=True):
    """Do not train the logit scale: it keeps its value, bit for bit.

    The parameter is frozen just before the optimiser is rebuilt for an
    experience, which so leaves it out.
    """

    keeps_per_weight_state = False

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze the parameter."""
        strategy.model.logit_scale.requires_grad_(False)


def is_pretrained(strategy: Any) -> bool:
    """Whether the model of a strategy came with weights."""
    return getattr(strategy.model, "pretrained", None) is not None


def similarities(
    images: Tensor, texts: Tensor, scale: Tensor | float | None = None
) -> Tensor:
    """Cosines ``(N, M)`` of features, times a logit scale if one is given."""
    return (images if scale is None else scale * images) @ texts.T


def encode_student(
    strategy: Any, encode: Callable[[Tensor], Tensor], rows: Tensor
) -> Tensor:
    """Encode rows beside the training batch, with gradients.

    Under gradient accumulation in as many parts as the training batch, each of which
    is encoded again in the backward pass, with the same random numbers.

    :param strategy: gives autocast and ``accumulation_steps``.
    :param encode: features of some rows.
    :param rows: ``(N, ...)``.
    :return: features ``(N, D)``.
    """

    def call(part: Tensor) -> Tensor:
        with strategy.autocast():
            return encode(part)

    if strategy.accumulation_steps == 1:
        return call(rows)
    parts = rows.tensor_split(min(strategy.accumulation_steps, len(rows)))
    return torch.cat([checkpoint(call, part, use_reentrant=False) for part in parts])


def own_share(rows: Tensor) -> Tensor:
    """Return this process's part of rows that all processes have.

    :param rows: ``(N, ...)``, the same everywhere.
    :return: ``ceil(N / world_size)`` rows; the last part is filled up from the
        front, so that gathering all and keeping ``N`` rows gives ``rows``.
    """
    world = distributed.world_size()
    count = -(-len(rows) // world)
    start = distributed.rank() * count
    return rows[torch.arange(start, start + count) % len(rows)]
