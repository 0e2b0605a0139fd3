"""Input checks shared by the losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def check_feature_pair(image_features: Tensor, text_features: Tensor) -> None:
    """Raise unless both tensors are float matrices of one shape.

    :param image_features: to be checked, expected ``(B, D)``.
    :param text_features: to be checked, expected ``(B, D)``.
    :raises ValueError: if a tensor is not a floating point matrix, the shapes
        differ, there is no row, or one is float64 and the other is not, or
        they lie on two devices.
    """
    for name, value in (
        ("image_features", image_features),
        ("text_features", text_features),
    ):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}; pass a tensor.")
    shapes = (
        f"image_features {tuple(image_features.shape)} and "
        f"text_features {tuple(text_features.shape)}"
    )
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            f"{shapes} given; both must be matrices of one shape (B, D). Pass "
            "one caption per image, in the same order."
        )
    if image_features.shape[0] == 0:
        raise ValueError(f"{shapes} given; the loss needs at least one pair.")
    if not (image_features.is_floating_point() and text_features.is_floating_point()):
        raise ValueError(
            f"{shapes} have types {image_features.dtype} and "
            f"{text_features.dtype}; pass floating point features."
        )
    doubles = {t.dtype == torch.float64 for t in (image_features, text_features)}
    if len(doubles) > 1 or image_features.device != text_features.device:
        raise ValueError(
            f"{shapes} have types {image_features.dtype} and {text_features.dtype} on "
            f"{image_features.device} and {text_features.device}; both must agree."
        )


def check_scalar(name: str, value: Tensor | float) -> Tensor | float:
    """Return ``value`` with one element as a number or 0-d tensor.

    :param name: name of the argument, for the message.
    :param value: number or tensor with exactly one element.
    :return: the number, or the tensor reshaped to ``()``.
    :raises ValueError: if a tensor has more or less than one element.
    """
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() != 1:
        raise ValueError(
            f"{name} of shape {tuple(value.shape)} given; pass a number or a "
            "tensor with one element."
        )
    return value.reshape(())


def positive_mask(targets: Tensor | None, features: Tensor) -> Tensor:
    """Mark the pairs of a batch that belong together.

    :param targets: integer ids, shape ``(B,)``, or None for the diagonal.
    :param features: features of the batch, ``(B, D)``; gives size and device.
    :return: bool tensor ``(B, B)``; True where the ids are equal.
    :raises ValueError: if ``targets`` is not an integer vector of length B on
        the device of the features.
    """
    size = features.shape[0]
    if targets is None:
        return torch.eye(size, dtype=torch.bool, device=features.device)
    if not isinstance(targets, Tensor) or targets.device != features.device:
        kind = (
            f"on {targets.device}"
            if isinstance(targets, Tensor)
            else f"a {type(targets).__name__}"
        )
        raise ValueError(
            f"targets are {kind}, the features of shape {tuple(features.shape)} on "
            f"{features.device}; pass an integer tensor on the same device."
        )
    if targets.shape != (size,):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} given for features of shape "
            f"{tuple(features.shape)}; pass one id per pair, shape ({size},)."
        )
    is_number = targets.is_floating_point() or targets.is_complex()
    if is_number or targets.dtype == torch.bool:
        raise ValueError(f"targets of type {targets.dtype} given; pass integer ids.")
    return targets[:, None] == targets[None, :]


def check_score_pair(scores: Tensor, teacher: Tensor, names: tuple[str, str]) -> None:
    """Raise unless both tensors are float matrices of one shape on one device.

    :param scores: of the student, expected ``(N, M)``.
    :param teacher: of the teacher, same shape.
    :param names: of the two arguments, for the message.
    :raises ValueError: if they are not, or are empty.
    """
    for name, value in zip(names, (scores, teacher), strict=True):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}; pass a tensor.")
    shapes = f"{names[0]} {tuple(scores.shape)} and {names[1]} {tuple(teacher.shape)}"
    if scores.ndim != 2 or scores.shape != teacher.shape:
        raise ValueError(
            f"{shapes} given; both must be matrices of one shape (N, M). Compute "
            "them on the same batch."
        )
    if scores.numel() == 0:
        raise ValueError(f"{shapes} given; the loss needs at least one pair.")
    if not (scores.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(
            f"{shapes} have types {scores.dtype} and {teacher.dtype}; pass floating "
            "point values."
        )
    if scores.device != teacher.device:
        raise ValueError(
            f"{shapes} lie on {scores.device} and {teacher.device}; move one."
        )


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return float32 for half precision input, the tensor itself otherwise.

    :param tensor: floating point tensor.
    :return: tensor of type float32 or float64.
    """
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor


@contextmanager
def full_precision(tensor: Tensor) -> Iterator[None]:
    """Switch autocast off: similarities and softmax need float32.

    :param tensor: any tensor on the device in question.
    """
    with torch.autocast(device_type=tensor.device.type, enabled=False):
        yield


__all__ = [
    "at_least_float32",
    "check_feature_pair",
    "check_scalar",
    "check_score_pair",
    "full_precision",
    "positive_mask",
]
