"""Input checks shared by the losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_integer, require_alike, require_array


def check_feature_pair(image_features: Tensor, text_features: Tensor) -> None:
    """Raise unless both tensors are float matrices of one shape.

    :param image_features: to be checked, expected ``(B, D)``.
    :param text_features: to be checked, expected ``(B, D)``.
    :raises ValueError: if a tensor is not a floating point matrix, the shapes
        differ, there is no row, or one is float64 and the other is not, or
        they lie on two devices.
    """
    do = "pass one caption per image, in the same order"
    _check_pair("B D", do, image_features=image_features, text_features=text_features)
    if torch.float64 in (image_features.dtype, text_features.dtype):
        require_alike(
            "pass one type",
            ("dtype",),
            image_features=image_features,
            text_features=text_features,
        )


def check_score_pair(scores: Tensor, teacher: Tensor, names: tuple[str, str]) -> None:
    """Raise unless both tensors are float matrices of one shape on one device.

    :param scores: of the student, expected ``(N, M)``.
    :param teacher: of the teacher, same shape.
    :param names: of the two arguments, for the message.
    :raises ValueError: if they are not, or are empty.
    """
    pair = dict(zip(names, (scores, teacher), strict=True))
    _check_pair("N M", "compute them on the same batch", **pair)


def _check_pair(shape: str, do: str, **pair: Tensor) -> None:
    for name, value in pair.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}; pass a tensor.")
        require_array(value, name, shape, "float", give="at least one pair")
    require_alike(do, ("shape", "device"), **pair)


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


def positive_mask(
    targets: Tensor | None, features: Tensor, rows: slice = slice(None)
) -> Tensor:
    """Mark the pairs of a batch that belong together.

    :param targets: integer ids, shape ``(B,)``, or None for the diagonal.
    :param features: features of the batch, ``(B, D)``; gives size and device.
    :param rows: those wanted, default all.
    :return: bool tensor ``(b, B)``; True where the ids are equal.
    :raises ValueError: if ``targets`` is not an integer vector of length B on
        the device of the features.
    """
    size = features.shape[0]
    if targets is None:
        columns = torch.arange(size, device=features.device)
        return columns[rows, None] == columns[None, :]
    require_array(targets, "targets", f"{size}", "integer", give="one id per pair")
    require_alike("move one", ("device",), targets=targets, features=features)
    return targets[rows, None] == targets[None, :]


def require_rows(rows: slice | None, size: int) -> slice | None:
    """Return rows of a batch with both ends.

    :param rows: consecutive rows, or None.
    :param size: rows of the batch.
    :raises ValueError: if rows are skipped or lie outside the batch.
    """
    if rows is None:
        return None
    if isinstance(rows, slice) and rows.step in (None, 1):
        start = 0 if rows.start is None else as_integer(rows.start, "rows.start")
        stop = size if rows.stop is None else as_integer(rows.stop, "rows.stop")
        if 0 <= start <= stop <= size:
            return slice(start, stop)
    raise ValueError(
        f"rows={rows} of a batch of {size}; give slice(start, stop) inside it."
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
