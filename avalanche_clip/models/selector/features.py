"""Frozen early features of a CLIP-like model, from which a router is chosen.

Our choice in place of AlexNet (see ``alexnet``): nothing is downloaded.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.common.checks import require_choice, require_type
from avalanche_clip.models.encoders.architectures import towers_of
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.towers import plain_name

POOLINGS = ("mean", "none", "grid")  # the last for places only
GRID = 4  # cells per side of the pooling "grid"
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)


class SelectorFeatures(nn.Module):
    """Base of the frozen feature extractors; always in evaluation mode.

    :ivar name: written into a selector's state.
    :ivar feature_size: number F of features per image.
    :ivar standardize: whether a selector standardises the features with the
        statistics of its reference images.
    :ivar was_trainable: whether the model whose layers these are may have
        changed by the time a state is loaded, so that they belong to it.
    """

    name = ""
    standardize = False
    was_trainable = False
    feature_size: int

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 features ``(B, F)`` of images ``(B, 3, H, W)``."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Plain data that must agree when a selector's state is loaded."""
        return {}

    def input_state(self) -> Any:
        """What was said about incoming images, as plain data; None for nothing."""
        return None

    def load_input_state(self, state: Any) -> None:
        """Put back what :meth:`input_state` returned, unless a model said it."""

    def probe(self) -> Tensor:
        """Answer to a fixed test image, float32, by which weights are recognised."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> SelectorFeatures:
        """Stay in evaluation mode, whatever is asked for."""
        super().train(False)
        return self


@contextmanager
def _without_hooks(root: nn.Module) -> Iterator[None]:
    """Take off what is called beside modules: a copy made inside has no adapters."""
    kept = []
    for own in map(vars, root.modules()):
        kept += [(own, name, own[name]) for name in _HOOKS if own.get(name)]
        kept += [(own, "forward", own["forward"])] if "forward" in own else []
    for own, name, _ in kept:
        del own[name]
        if name in _HOOKS:
            own[name] = OrderedDict()
    try:
        yield
    finally:
        for own, name, value in kept:
            own[name] = value


def _attached(model: DualEncoder) -> list[nn.Module]:
    """List the modules in a model that its architecture does not have."""
    names = [key.split(".") for key in model.plain_shapes]
    plain = {".".join(parts[:n]) for parts in names for n in range(1, len(parts))}
    return [
        module
        for name, module in model.clip.named_modules()
        if name and plain_name(name) not in plain and len(list(module.parameters()))
    ]


def fixed_images(size: tuple[int, int]) -> Tensor:
    """Return two fixed wave patterns ``(2, 3, H, W)``, free of random numbers."""
    rows = torch.arange(size[0], dtype=torch.float64).view(1, -1, 1) / size[0]
    columns = torch.arange(size[1], dtype=torch.float64).view(1, 1, -1) / size[1]
    phase = torch.arange(3, dtype=torch.float64).view(-1, 1, 1)
    waves = [
        torch.sin(5 * rows + 9 * columns + phase),
        torch.cos(17 * rows * columns - 2 * phase),
    ]
    return torch.stack(waves).float()


class ModelFeatures(SelectorFeatures):
    """A model's own early image features, frozen when this object is built.

    Transformer towers: the mean over all tokens, class token included, after
    the first block. Convolutional towers: the output of the stem (the input
    of the first stage), averaged over the cells of a 4 x 4 grid, channels
    first. On the embedded emoji the grid told 9 groups apart with twice the
    accuracy of plain averages.

    Holds a float32 copy of the tower without its later blocks, in evaluation
    mode, without hooks and adapters. So neither training nor adapters change
    the features, and no reference to the model is kept. The early layers run
    once more for every image that is routed.

    :param model: its early layers are copied; it is left as it is.
    :param pooling: ``"mean"``; ``"none"``, all tokens or places, as published
        (151,296 features for ViT-B/16, so autoencoders are large); or
        ``"grid"`` (convolutional only, 16C features). None: mean or grid, see
        above.
    :raises ValueError: for an unknown pooling, for ``"grid"`` with a
        transformer, and for towers without a known beginning.
    """

    name = "model"
    standardize = True

    def __init__(self, model: DualEncoder, pooling: str | None = None) -> None:
        super().__init__()
        require_type(model, DualEncoder, "The model", "a DualEncoder")
        self._towers = towers_of(model.config)
        root: nn.Module = getattr(model.clip, self._towers.image_child)
        stage, later = self._towers.early_stage(model.clip)
        self._is_stem = stage in later
        self._batch_first = self._is_stem or model.blocks("image")[0].batch_first
        if pooling is None:
            pooling = "grid" if self._is_stem else "mean"
        require_choice("pooling", pooling, POOLINGS[: 3 if self._is_stem else 2])
        self.pooling = pooling
        self._path = next(name for name, m in root.named_modules() if m is stage)
        size = model.image_size
        self._size = (size, size) if isinstance(size, int) else size
        replaced = [*later, *_attached(model)]
        with _without_hooks(root):
            tower = copy.deepcopy(root, {id(m): nn.Identity() for m in replaced})
        self.tower = tower.float().requires_grad_(False).eval()
        self.feature_size = self.probe().shape[0] // 2
        # then a later model is no source for them any more
        ours = dict(self.tower.named_parameters())
        self.was_trainable = any(
            p.requires_grad for name, p in root.named_parameters() if name in ours
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute the features with the frozen copy.

        :param images: float, ``(B, 3, H, W)``, as for the model.
        :return: float32, ``(B, F)``, without gradient.
        :raises ValueError: if the tower cannot take the images.
        """
        place = (self.tower, self._path, self._is_stem)
        try:
            with torch.autocast(images.device.type, enabled=False):
                hidden = self._towers.prefix(*place, images.float())
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"Images came as {tuple(images.shape)} and cannot be read by the early"
                f" layers ({error}); use model.transform(train)."
            ) from error
        return self._pool(hidden.float())

    def _pool(self, hidden: Tensor) -> Tensor:
        if self.pooling == "grid":
            return F.adaptive_avg_pool2d(hidden, GRID).flatten(1)
        if self._is_stem:
            hidden = hidden.flatten(2).transpose(1, 2)
        elif not self._batch_first:
            hidden = hidden.transpose(0, 1)
        if self.pooling == "mean":
            return hidden.mean(1)
        count, width = hidden.shape[1:]
        expected = getattr(self, "feature_size", count * width) // width
        if count != expected:
            raise ValueError(
                f"The images give {count} tokens instead of {expected}; with pooling="
                f"'none' all must have {self._size[0]} x {self._size[1]} pixels."
            )
        return hidden.flatten(1)

    def settings(self) -> dict[str, Any]:
        """Return the pooling."""
        return {"pooling": self.pooling}

    def probe(self) -> Tensor:
        """Return the features of two fixed images, float32 ``(2F,)``."""
        device = next(self.tower.parameters()).device
        return self(fixed_images(self._size).to(device)).flatten()


def all_settings(features: SelectorFeatures) -> dict[str, Any]:
    """Return an extractor's settings, feature size included."""
    return {"feature_size": features.feature_size, **features.settings()}


def check_same_extractor(
    features: SelectorFeatures, settings: dict[str, Any], probe: Tensor, std: Tensor
) -> None:
    """Make sure that autoencoders meet the features they were trained on.

    Rounding passes (16-bit storage, another device), other weights do not.

    :param features: the extractor to check.
    :param settings: ``all_settings`` of the extractor they were trained on.
    :param probe: its answer to the fixed images.
    :param std: deviations by which features are divided, ``(F,)``.
    :raises ValueError: if settings differ, or if the answer is off by more than
        2 % or, for standardised features, 0.1 deviations (root mean square).
    """
    found_settings = all_settings(features)
    if found_settings != settings:
        raise ValueError(
            f"the autoencoders were trained on features with {settings}, the"
            f" extractor has {found_settings}; use the same."
        )
    found, known = features.probe().cpu().double(), probe.cpu().double()
    if features.standardize:
        scale = std.cpu().double().repeat(len(found) // len(std))
        far = bool(((found - known) / scale).square().mean().sqrt() > 0.1)
    else:
        far = bool((found - known).norm() > 0.02 * known.norm())
    if far:
        raise ValueError(
            "the extractor has other weights than the one the autoencoders were"
            " trained on; give the same base model, before any training of its"
            " image tower, or the same AlexNet file."
        )
