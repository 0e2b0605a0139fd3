"""The output type of every dual encoder, and how its features are formed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def compute_type(precision: str, kind: str) -> AbstractContextManager[Any]:
    """Return the context in which weights stored with a precision compute.

    :param precision: of the model.
    :param kind: of the device.
    """
    if precision == "fp32" or torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, dtype=PRECISIONS[precision])


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
        (0-d, routed adapters only), ``prompt_features`` ``(B, n, D)`` (raw; prompt
        tokens only).

    >>> out = CLIPOutput(torch.eye(2), torch.eye(2), torch.tensor(10.0))
    >>> out.logit_scale * out.image_features @ out.text_features.T
    tensor([[10.,  0.],
            [ 0., 10.]])
    """

    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    aux: dict[str, Tensor] | None = None


def model_output(
    model: Any, images: Tensor, texts: Tensor, **aux: Tensor
) -> CLIPOutput:
    """Put the logit scale of a model, and its bias if it has one, beside features."""
    bias = getattr(model, "logit_bias", None)
    if bias is not None:
        # no view: hooks of processes that share out the weights belong on what is made
        aux["logit_bias"] = bias.float().reshape(()).clone()
    return CLIPOutput(images, texts, model.logit_scale.float().exp().reshape(()), aux)


def class_scores(output: CLIPOutput, images: Tensor, texts: Tensor) -> Tensor:
    """Logits of images against texts, with the scale and bias of a model's output."""
    logits = output.logit_scale * images @ texts.T
    bias = (output.aux or {}).get("logit_bias")
    return logits if bias is None else logits + bias


def unit_features(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scale rows to length 1, in float32 under autocast as well.

    :param raw: float32, shape ``(N, D)``.
    :return: normalised rows, and their former lengths ``(N, 1)``.

    >>> unit_features(torch.tensor([[3.0, 4.0]]))
    (tensor([[0.6000, 0.8000]]), tensor([[5.]]))
    """
    with torch.autocast(raw.device.type, enabled=False):
        norm = raw.norm(2, dim=-1, keepdim=True)
        return raw / norm.clamp_min(1e-12), norm


def joint_features(image: Tensor, text: Tensor, owner: Any = None) -> Tensor:
    """Put every image feature beside that of the image's first text.

    :param image: shape ``(B, D)``.
    :param text: shape ``(M, D)``.
    :param owner: image row of every text, ``(M,)``, every image at least
        once; None if row i of both belong together.
    :return: shape ``(B, 2D)``; without ``owner`` and with M different from B
        nothing belongs together, and ``image`` is returned.

    >>> image, text = torch.tensor([[1.0], [2.0]]), torch.tensor([[7.0], [8.0], [9.0]])
    >>> joint_features(image, text, torch.tensor([1, 1, 0]))
    tensor([[1., 9.],
            [2., 7.]])
    """
    rows, texts = image.shape[0], text.shape[0]
    if owner is None:
        return torch.cat([image, text], 1) if texts == rows else image
    owner = torch.as_tensor(owner, device=text.device)
    first = torch.full((rows,), texts - 1, device=text.device)
    order = torch.arange(texts, device=text.device)
    first.scatter_reduce_(0, owner, order, "amin", include_self=True)
    return torch.cat([image, text[first]], 1)
