"""Bottleneck adapters behind, or beside, the two halves of a block.

With h the output of a half (attention or perceptron) and z what the half reads:

- serial: ``h + scale * up(activation(down(h)))``;
- parallel: ``h + scale * up(activation(down(z)))``.

Source: Houlsby et al., ICML 2019 (arXiv 1902.00751) for the serial form; one adapter
used twice per block is that of Wang et al., 2024 (SIT, arXiv 2405.15155), the parallel
form with a learned scale that of Li et al., 2024 (CoLeCLIP, arXiv 2403.10245).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.peft.attached import BranchSet
from avalanche_clip.models.peft.branch import (
    RoutedBranch,
    chosen_blocks,
    chosen_names,
    require_flags,
)

PLACES = ("attention_out", "mlp_out")
FORMS = ("serial", "parallel")
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class Bottleneck(nn.Module):
    """``up(dropout(activation(down(x))))`` with a zero ``up``.

    :param width: channels D.
    :param inner: hidden width.
    :param activation: one of :data:`ACTIVATIONS`.
    :param dropout: of the hidden units in training.
    """

    def __init__(
        self, width: int, inner: int, activation: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every token of ``(..., D)``."""
        return self.up(self.dropout(self.activation(self.down(x))))


class ScaledBottleneck(Bottleneck):
    """A bottleneck with a factor, a number or a trained one, and a zero bias."""

    def __init__(
        self, width: int, *, scale: float, learned: bool, **options: Any
    ) -> None:
        super().__init__(width, **options)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        self.scale: Any = nn.Parameter(torch.tensor(scale)) if learned else scale

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every token of ``(..., D)``."""
        return self.scale * super().forward(x)


class AdapterBranch(RoutedBranch):
    """The bottlenecks of one block, one per id and place, or shared by both places.

    :param width: channels D.
    :param form: ``"serial"`` or ``"parallel"``.
    :param place: one of :data:`PLACES`.
    :param options: of :class:`ScaledBottleneck`.
    """

    def __init__(
        self, width: int, form: str, places: tuple[str, ...], child: str, options: Any
    ) -> None:
        super().__init__()
        self.CHILD = child  # type: ignore[misc]
        self.width, self.form, self.places = width, form, places
        self.options = options

    def make(self) -> nn.Module:
        """Return the bottleneck of a new id."""
        return ScaledBottleneck(self.width, **self.options)

    def hook(self) -> None:
        """Hook into the halves of the block."""
        view = self.view
        halves = {
            "attention_out": (view.attn_out, view.norm1),
            "mlp_out": (view.mlp_out, view.norm2),
        }
        for place in self.places:
            self.add_at(*halves[place], normed=True)

    def reads(self, kept: Tensor, output: Tensor) -> Tensor:
        """Return the output of the half, or what it reads."""
        return output if self.form == "serial" else kept


def attach_adapters(
    model: DualEncoder,
    tower: str = "both",
    *,
    blocks: Iterable[int] | None = None,
    bottleneck: int = 64,
    scale: float = 0.1,
    dropout: float = 0.1,
    places: Iterable[str] = PLACES,
    form: str = "serial",
    shared: bool = True,
    activation: str = "relu",
    learned_scale: bool = False,
) -> BranchSet:
    """Put bottlenecks behind or beside both halves of blocks; freeze all else.

    Outputs start at zero, so features stay those of the frozen model. Those of id 0
    train; further ids are made with ``model.adapters.add()`` and chosen with
    ``model.adapters.set_ids(ids)``, for all rows or per row.

    :param model: a dual encoder with residual attention blocks.
    :param tower: ``"image"``, ``"text"`` or ``"both"``.
    :param blocks: indices of the blocks, from 0; None for all.
    :param bottleneck: hidden width.
    :param scale: factor of the output.
    :param dropout: probability for hidden units in training.
    :param places: ``"attention_out"``, ``"mlp_out"`` or both.
    :param form: ``"serial"`` reads the output of its half, ``"parallel"`` what the
        half reads, the output of its norm.
    :param shared: whether both places use the same weights (SIT).
    :param activation: ``"relu"`` or ``"gelu"``.
    :param learned_scale: whether ``scale`` is only the start of a trained number.
    :return: the set, also ``model.adapters``.
    :raises ValueError: if adapters are attached already, a tower has no such blocks, or
        an option is out of range; the model is then unchanged.

    Source: the defaults are those of SIT (arXiv 2405.15155); CoLeCLIP (arXiv
    2403.10245): ``form="parallel", places="attention_out", activation="gelu",
    bottleneck=5, scale=1.0, dropout=0.0, learned_scale=True``.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> attach_adapters(model, blocks=[1]).num_trainable == 2 * (129 * 128 + 64)
    True
    """
    names = tuple(chosen_names(places, "places", PLACES))
    require_flags(shared=shared, learned_scale=learned_scale)
    require_choice("form", form, FORMS)
    require_choice("activation", activation, ACTIVATIONS)
    bottleneck, scale = as_size(bottleneck, "bottleneck"), as_finite(scale, "scale")
    if learned_scale and scale == 0:
        raise ValueError(
            "A learned scale that starts at scale=0 never moves, since the branch "
            "starts at 0 too; give another scale."
        )
    dropout = as_finite(dropout, "dropout", low=0, high=1)
    common = {"activation": activation, "dropout": dropout, "scale": scale}
    options = {"inner": bottleneck, "learned": learned_scale, **common}
    views, config = chosen_blocks(model, tower, blocks)
    groups = [names] if shared else [(name,) for name in names]
    made: dict[str, Any] = {}
    for group in groups:
        child = "adapter" if shared else f"adapter_{group[0]}"
        for name, own in views.items():
            made.setdefault(name, []).extend(
                (AdapterBranch(v.width, form, group, child, options), v) for v in own
            )
    config |= {"bottleneck": bottleneck, "places": list(names), "form": form, **common}
    config |= {"shared": shared, "learned_scale": learned_scale}
    result = BranchSet(model, "adapters", config)
    result.connect(made)
    return result
