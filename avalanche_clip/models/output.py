"""The one output type of every dual encoder."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class CLIPOutput(NamedTuple):
    """Features of one image-text batch.

    :param image_features: L2-normalised float32, shape ``(B, D)``.
    :param text_features: L2-normalised float32, shape ``(M, D)``; M differs
        from B when images carry several captions or when the texts are class
        prompts.
    :param logit_scale: 0-d float32, already exponentiated (the factor that
        multiplies cosines; the model's parameter is its logarithm).
    :param aux: further tensors by name, or None: ``image_norm`` ``(B, 1)``
        and ``text_norm`` ``(M, 1)`` (raw feature = feature * norm),
        ``logit_bias`` (0-d, sigmoid-trained models only), ``balance_loss``
        (0-d, routed adapters only).

    >>> import torch
    >>> out = CLIPOutput(torch.eye(2), torch.eye(2), torch.tensor(10.0))
    >>> out.logit_scale * out.image_features @ out.text_features.T
    tensor([[10.,  0.],
            [ 0., 10.]])
    """

    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    aux: dict[str, Tensor] | None = None


__all__ = ["CLIPOutput"]
