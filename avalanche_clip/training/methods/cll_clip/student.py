"""The student of CLL-CLIP: a text tower with features of the teacher for its targets.

Source: Yang et al., AAAI 2024 (CLL-CLIP with TEIR, arXiv 2401.17186) and the
released code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.benchmarks.items.items import item_fields
from avalanche_clip.losses import cross_lingual_loss, cross_modal_loss
from avalanche_clip.models import CLIPOutput
from avalanche_clip.models.encoders.output import unit_features
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.contrastive import ContrastiveCriterion

INITIAL_TAU = 0.07
TAU_RANGE = (0.001, 0.5)


class CrossModalTemperature(nn.Module):
    """The learnable divisor of the cosines between texts and images.

    It is no part of the state dictionary: it starts anew with each experience,
    and features do not depend on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.tensor(INITIAL_TAU))

    def forward(self) -> Tensor:
        """Clamp the parameter in place and return it."""
        with torch.no_grad():
            self.tau.clamp_(*TAU_RANGE)
        return self.tau

    def _save_to_state_dict(self, *args: Any) -> None:
        return None

    def _load_from_state_dict(self, *args: Any) -> None:
        return None


class CrossLingualSidePlugin(MethodPlugin, supports_distributed=True):
    """Reset the temperature, and ask for the teacher where the data have none."""

    keeps_per_weight_state = False

    def __init__(self) -> None:
        super().__init__()
        self._tau: Tensor | None = None

    def teacher_kinds(self, strategy: Any) -> tuple[str, ...]:
        """Name the initial model when a teacher's features must be computed."""
        have = set(item_fields(strategy.experience.dataset))
        return () if strategy.teacher_fields <= have else ("initial",)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start the temperature anew."""
        temperature = getattr(strategy.model, "cross_modal", None)
        self._tau = None if temperature is None else temperature.tau
        if self._tau is not None:
            self._tau.data.fill_(INITIAL_TAU)

    def state_dict(self) -> dict[str, Any]:
        """Return the temperature."""
        return {"tau": None if self._tau is None else float(self._tau.detach())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the temperature back, in a running experience."""
        if self._tau is not None and state["tau"] is not None:
            self._tau.data.fill_(state["tau"])


class CrossLingualCriterion(nn.Module):
    """Both losses of a batch, from the output of a text student.

    :param cross_lingual_weight: of :func:`cross_lingual_loss`.
    :param cross_modal_weight: of :func:`cross_modal_loss`.
    """

    def __init__(self, cross_lingual_weight: float, cross_modal_weight: float) -> None:
        super().__init__()
        self.cross_lingual_weight = cross_lingual_weight
        self.cross_modal_weight = cross_modal_weight
        self._plain = ContrastiveCriterion()

    def forward(self, output: CLIPOutput, targets: Tensor | None = None) -> Tensor:
        """Compute the loss.

        :param output: with raw features in ``aux`` (training); without them the
            plain contrastive loss is returned.
        :param targets: image ids ``(B,)``, or None for distinct images.
        """
        aux = output.aux or {}
        if "text_raw" not in aux:
            return self._plain(output)
        total = output.logit_scale.new_zeros(())
        if self.cross_lingual_weight:
            term = cross_lingual_loss(aux["text_raw"], aux["teacher_text"])
            total = total + self.cross_lingual_weight * term
        if self.cross_modal_weight:
            tau = 1.0 / output.logit_scale
            term = cross_modal_loss(
                aux["text_raw"], aux["teacher_image"], tau, image_ids=targets
            )
            total = total + self.cross_modal_weight * term
        return total


def encode_by_length(model: Any, text: Tensor, groups: int = 1) -> Tensor:
    """Encode texts in groups of similar length, each as long as its longest.

    In a batch of captions most are far shorter than the longest, to which all are
    padded. Features agree with those of one pass within rounding.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`; towers that read
        beyond the end token encode all texts in one pass.
    :param text: token ids ``(M, L)``.
    :param groups: number of groups, at least 1; 1 is one pass.
    :return: raw features ``(M, D)`` in the order of the texts.
    """
    if groups == 1 or len(text) < 2 or not getattr(model, "is_causal_text", False):
        return model.encode_text(text, normalize=False)
    ends = text == model.tokenizer.eot_id
    whole = torch.full_like(text[:, 0], text.shape[1])
    lengths = torch.where(ends.any(1), ends.int().argmax(1) + 1, whole)
    order = lengths.argsort(stable=True)
    parts = [
        model.encode_text(text[rows, : int(lengths[rows[-1]])], normalize=False)
        for rows in order.chunk(groups)
    ]
    return torch.cat(parts)[order.argsort()]


class TextStudent(nn.Module):
    """The part of a model that is trained: its text tower and the temperature.

    :param model: the dual encoder.
    :param length_groups: see :func:`encode_by_length`.
    """

    def __init__(self, model: Any, length_groups: int = 1) -> None:
        super().__init__()
        self.model = model
        self.length_groups = length_groups
        #: whether the output is for the loss, with raw features
        self.for_loss = True

    def forward(self, batch: Any) -> CLIPOutput:
        """Encode the texts of a batch; images are given as features.

        :param batch: with ``text``, ``teacher_image`` and, where the loss needs
            it, ``teacher_text``.
        """
        raw = encode_by_length(self.model, batch["text"], self.length_groups)
        text, text_norm = unit_features(raw)
        given = batch["teacher_image"].to(raw.dtype)
        image, image_norm = unit_features(given)
        aux = {"image_norm": image_norm, "text_norm": text_norm}
        temperature = getattr(self.model, "cross_modal", None)
        if self.for_loss:
            aux.update(text_raw=raw, teacher_image=given)
            if "teacher_text" in batch:
                aux["teacher_text"] = batch["teacher_text"].to(raw.dtype)
        if self.for_loss and temperature is not None:
            return CLIPOutput(image, text, 1.0 / temperature(), aux)
        bias = getattr(self.model, "logit_bias", None)
        if bias is not None and not self.for_loss:
            aux["logit_bias"] = bias.float().reshape(())
        scale = self.model.logit_scale.float().exp().reshape(())
        return CLIPOutput(image, text, scale, aux)
