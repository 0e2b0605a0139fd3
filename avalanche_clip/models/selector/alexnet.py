"""The feature extractor of DDAS: AlexNet's convolutions, frozen.

Source: Yu et al., CVPR 2024 (MoE-Adapters, arXiv 2403.11549) and the authors'
code, which give AlexNet images that were normalised for CLIP. Tensor names were
checked against torchvision 0.29.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.common.checks import as_size, require_choice
from avalanche_clip.models.encoders.weights import read_weights
from avalanche_clip.models.selector.features import SelectorFeatures, fixed_images

#: mean and standard deviation of red, green, blue
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], ...]] = {
    "clip": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class AlexNetFeatures(SelectorFeatures):
    """The last convolution of torchvision's AlexNet, before its ReLU.

    For 224 x 224 pixels ``(B, 256, 13, 13)``, flattened to 43,264 features;
    2.5 million frozen parameters. Nothing is downloaded.

    :param weights: local state dictionary of ``torchvision.models.alexnet``
        (``.pth``, ``.pt`` or ``.safetensors``); the classifier is ignored.
    :param normalization: statistics the images shall have: ``"clip"``
        (the authors' code), or ``"imagenet"``, with which AlexNet was trained.
    :param image_size: side in pixels to which other images are resized,
        bicubic; F depends on it.
    :raises ValueError: without a file, for a file with other tensors, for an
        unknown normalization, or for images too small for AlexNet (< 63).
    """

    name = "alexnet"

    def __init__(
        self,
        weights: str | Path | None,
        *,
        normalization: str = "clip",
        image_size: int = 224,
    ) -> None:
        super().__init__()
        require_choice("normalization", normalization, NORMALIZATIONS)
        self.normalization = normalization
        self.image_size = as_size(image_size, "image_size", least=63)
        self.layers = _alexnet_layers(weights)
        self._given: tuple[tuple[float, ...], ...] = NORMALIZATIONS["clip"]
        self._was_told = False
        self.feature_size = self(self._test_images()).shape[1]
        self.train(False)

    def set_input_statistics(self, mean: Any, std: Any) -> None:
        """Say how incoming images were normalised; CLIP's way if never called.

        :param mean: three numbers that were subtracted.
        :param std: three numbers by which the differences were divided.
        """
        self._given = (tuple(map(float, mean)), tuple(map(float, std)))
        self._was_told = True

    def input_state(self) -> list[list[float]]:
        """Return the mean and deviation of incoming images."""
        return [list(values) for values in self._given]

    def load_input_state(self, state: Any) -> None:
        """Put back what :meth:`input_state` returned, unless a model said it."""
        if not self._was_told:
            self._given = (tuple(state[0]), tuple(state[1]))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute the features.

        :param images: normalised images, float, ``(B, 3, H, W)``.
        :return: float32, ``(B, F)``, without gradient.
        """
        images = images.float()
        wanted = NORMALIZATIONS[self.normalization]
        if self._given != wanted:
            stats = images.new_tensor((*self._given, *wanted)).view(4, 3, 1, 1)
            mean, std, new_mean, new_std = stats
            images = images * (std / new_std) + (mean - new_mean) / new_std
        side = self.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(images).flatten(1)

    def settings(self) -> dict[str, Any]:
        """Return the normalisation and the size in pixels."""
        return {"normalization": self.normalization, "image_size": self.image_size}

    def _test_images(self) -> Tensor:
        device = next(self.layers.parameters()).device
        return fixed_images((self.image_size, self.image_size)).to(device)

    def probe(self) -> Tensor:
        """Return the channel means of two fixed images, float32 ``(512,)``."""
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            return self.layers(self._test_images()).mean((2, 3)).flatten()


def _alexnet_layers(path: str | Path | None) -> nn.Sequential:
    """Build AlexNet's convolutions and load their weights."""
    from torchvision.models import alexnet

    advice = (
        "give weights=<file>, a local state dictionary of torchvision.models.alexnet"
        " (.pth or .safetensors), or use extractor='model'"
    )
    path = None if path is None else Path(path).expanduser()
    if path is None or not path.is_file():
        found = "no weights" if path is None else f"{path}, which is no file"
        raise ValueError(f"extractor='alexnet' came with {found}; {advice}.")
    # without memory and without random numbers
    with torch.device("meta"):
        layers = alexnet(weights=None).features[:-2]
    state = {
        key.removeprefix("features."): value.detach().float().clone()
        for key, value in read_weights(path).state.items()
        if key.startswith("features.")
    }
    try:
        layers.load_state_dict(state, assign=True)
    except RuntimeError as error:
        wrong = f"{path} does not hold AlexNet's tensors; {advice}."
        raise ValueError(wrong) from error
    return layers.requires_grad_(False).eval()
