"""C-CLIP: merged low-rank updates, and features tied to old ones by a contrastive loss.

Source: Liu et al., "C-CLIP: Multimodal Continual Learning for Vision-Language Model",
ICLR 2025, read in an extracted text; the authors' code was not at hand. Not told there
and chosen here: the form of the projector (a linear map, the identity at the start of
each step) and the temperature of the term (the model's own, without gradient). The
parameter counts of table 6 fit updates of the attention's output and of both layers of
the perceptron (184,320 numbers per rank in ViT-B/16) beside trained embeddings, which
stay frozen here. The paper's dropout of updates (0.1) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_finite
from avalanche_clip.distributed import OnWholeBatch
from avalanche_clip.losses import contrastive_loss
from avalanche_clip.models.encoders.output import unit_features
from avalanche_clip.models.peft.attached import attachment
from avalanche_clip.training.methods.lora import LoRA
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.distillation import DistillationPlugin
from avalanche_clip.training.templates.options import further_options

PROJECTOR = "feature_projector"
"""Attribute of the model."""
IMAGE_RATE, TEXT_RATE = 3e-5, 3e-4
"""Learning rates of most data sets in the paper (Flickr30K 1e-5 and 1e-4; COCO 5e-7 and
4e-5)."""
C_CLIP_UPDATES: dict[str, Any] = {
    "merge": True,
    "share": 0.5,
    "rank": 16,
    "alpha": 32.0,
    "targets": ("out", "mlp"),
}
"""Options of :class:`LoRA`: half of the updates is merged (equation 2), alpha is twice
the rank; targets see the head of this module."""


class FeatureProjector(OnWholeBatch):
    """A linear map of features, from the identity on.

    It is no part of the state dictionary: features do not depend on it.

    :param width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(N, D)``; the result has length 1."""
        return unit_features(features @ self.weight.T)[0]

    def restart(self) -> None:
        """Become the identity again."""
        with torch.no_grad():
            nn.init.eye_(self.weight)

    def _save_to_state_dict(self, *args: Any) -> None:
        return None

    def _load_from_state_dict(self, *args: Any) -> None:
        return None


@dataclass(eq=False)
class ContrastiveKnowledgeConsolidationPlugin(
    DistillationPlugin, supports_distributed=True
):
    """Let new features, projected, be found among those of the previous model.

    Adds the term of equation 5. Images and texts of the global batch make 2N rows: a
    projected feature attracts the previous model's feature of the same image or text
    and repels those of all other images and texts, and the other way round. With ``h``
    the projected rows and ``z`` the previous model's this is ``2 *
    contrastive_loss(h, z, logit_scale)``. The projector lets both spaces be connected
    without being the same.

    It is trained with the model and starts from the identity in each experience, where
    both models are equal. With class names the texts are the prompts.

    Memory: a copy of the weights and the projector, ``D * D`` numbers, a child of the
    model that is not saved with it. Time: one forward pass of the teacher per step,
    booked as ``"teacher"``.

    :param weight: of the term, ``>= 0``; 0 turns it off exactly, and neither teacher
        nor projector is made.
    :param teach_first_experience: whether there is a term in the first experience;
        None: if the model has pretrained weights.
    :raises ValueError: for a negative weight.
    """

    weights = ("weight",)
    only_one = True

    weight: float = 1.0
    _: KW_ONLY
    teach_first_experience: bool | None = None

    def __post_init__(self) -> None:
        super().__init__()
        as_finite(self.weight, "weight", low=0)
        self._projector: FeatureProjector | None = None

    def check_compatible(self, strategy: Any) -> None:
        """Give the model a projector."""
        super().check_compatible(strategy)
        model = strategy.model
        mine = self._projector
        if self.in_use and (mine is None or attachment(model, PROJECTOR) is not mine):
            made = FeatureProjector(model.embed_dim).to(strategy.device)
            self._projector = made
            model.add_module(PROJECTOR, made)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Start the projector anew, without moments."""
        if self._projector is not None:
            # What has frozen the model has frozen it too.
            self._projector.requires_grad_(True)
            self._projector.restart()
            strategy.optimizer.state.pop(self._projector.weight, None)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the term."""
        if not self.teaches(strategy):
            return
        assert self._projector is not None
        student, teacher = strategy.global_features, self.teacher_output(strategy)
        new, old = (
            torch.cat([out.image_features, out.text_features])
            for out in (student, teacher)
        )
        scale = student.logit_scale.detach()
        term = 2 * contrastive_loss(self._projector(new), old, scale)
        strategy.add_loss("consolidation", self.weight * term)

    def state_dict(self) -> dict[str, Any]:
        """Return the projector; the teacher belongs to the strategy."""
        made = self._projector
        return {"projector": None if made is None else made.weight.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the projector back."""
        if self._projector is not None and state["projector"] is not None:
            self._projector.weight.data.copy_(state["projector"])


def c_clip_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with the values of the paper."""
    return torch.optim.AdamW(groups, lr=TEXT_RATE, betas=(0.9, 0.99), weight_decay=0.2)


def c_clip_groups(
    model: Any, rates: tuple[float, float], named_parameters: optim.Named
) -> list[dict[str, Any]]:
    """Groups of the image tower, at a tenth of the rate, and of all else.

    :param model: that names its towers.
    :param rates: of both.
    :param named_parameters: pairs of name and parameter.
    """
    sides: tuple[list[Any], list[Any]] = ([], [])
    for name, parameter in named_parameters:
        sides[model.tower_of(name) != "image"].append((name, parameter))
    return [
        {**group, "lr": rate}
        for side, rate in zip(sides, rates, strict=True)
        for group in optim.clip_param_groups(side, weight_decay=0.2)
    ]


class CCLIP(LoRA):
    """Low-rank updates, half of which is merged after each step, with consolidation.

    :class:`LoRA` with :class:`ContrastiveKnowledgeConsolidationPlugin`. The authors
    train 40 epochs per step with batches of 1024, a warm-up over 5 epochs and a cosine.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param weight: of the contrastive term, 1 in the paper.
    :param lr: of all but the image tower, which has a tenth of it; default 3e-4.
    :param plugin_options: further options of
        :class:`ContrastiveKnowledgeConsolidationPlugin`.
    :param plugins: further plugins.
    :param kwargs: see :class:`LoRA`; defaults are those of ``C_CLIP_UPDATES``. Without
        ``optimizer``: AdamW, betas 0.9 and 0.99 and, unless ``param_groups`` are given,
        learning rates of 3e-5 for the image tower and 3e-4 for all else, and weight
        decay 0.2.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> strategy = CCLIP(model=model, rank=2, alpha=4.0, evaluator=None)
    >>> [group["lr"] for group in strategy.optimizer.param_groups]
    [3e-05, 3e-05, 0.0003, 0.0003]
    """

    _default_optimizer = staticmethod(c_clip_optimizer)
    former_options = "consolidation"
    own_defaults = C_CLIP_UPDATES

    def __init__(
        self,
        *,
        model: nn.Module,
        weight: float = 1.0,
        lr: float | None = None,
        plugin_options: Mapping[str, Any] | None = None,
        consolidation: Mapping[str, Any] | None = None,
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        rates = IMAGE_RATE, TEXT_RATE
        if lr is not None:
            lr = as_finite(lr, "lr", above=0, hint="one rate for all experiences")
            rates = lr / 10, lr
        self._default_groups = partial(c_clip_groups, model, rates)
        plugin = ContrastiveKnowledgeConsolidationPlugin
        further = further_options(
            self, plugin, plugin_options, ["weight"], consolidation
        )
        plugins = [*(plugins or ()), plugin(weight, **further)]
        options = {**C_CLIP_UPDATES, "lr": lr, **kwargs}
        super().__init__(model=model, plugins=plugins, **options)
