"""A content hash of weights that costs one reduction when nothing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16}
_CHUNK = 1 << 17
_PRIME = 2**31 - 1


@lru_cache(maxsize=16)
def _position_weights(device: torch.device) -> Tensor:
    """One number in ``1 .. 2^31 - 1`` per position of a chunk, int64."""
    position = torch.arange(_CHUNK, dtype=torch.int64, device=device)
    return (position * position + 1_103_515_245 * position) % _PRIME + 1


def _bit_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor's bit patterns, weighted by position, 0-d int64 on its device.

    Integers wrap around, so all devices find the same. One chunk is held in 64
    bits at a time.
    """
    flat = tensor.detach().contiguous().view(-1)
    if flat.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=flat.device)
    bits = flat.view(_INTEGERS.get(flat.element_size(), torch.int32))
    weights = _position_weights(bits.device)
    sums = torch.stack(
        [(part * weights[: part.numel()]).sum() for part in bits.split(_CHUNK)]
    )
    if len(sums) == 1:
        return sums[0]
    places = torch.arange(len(sums), dtype=torch.int64, device=sums.device)
    return (sums * (places * places + 7 * places + 1)).sum()


def bit_sums(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Sum the bit patterns of named tensors, weighted by position.

    Equal tensors have equal sums on all devices; it costs one reduction each.
    """
    named = list(tensors)
    sums = _gather([_bit_sum(tensor) for _, tensor in named])
    return {name: total for (name, _), total in zip(named, sums, strict=True)}


def _digest(name: str, tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous().view(-1)
    head = f"{name}|{tuple(tensor.shape)}|{tensor.dtype}".encode()
    content = b"" if plain.numel() == 0 else plain.view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(head + b"\0" + content).digest()


class FingerprintCache:
    """Hash named tensors, reusing the hashes of tensors that did not change.

    A tensor counts as unchanged when its address, version counter, shape,
    type and a sum of its bit patterns, weighted by position, are the same. The
    sum is there because writes through ``.data`` leave the version counter alone.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[object, ...], bytes]] = {}

    def __call__(self, tensors: Iterable[tuple[str, Tensor]]) -> str:
        """Return the hash of all given tensors with their names, 32 hex digits."""
        named = list(tensors)
        sums = bit_sums(named)
        total = hashlib.sha256()
        for name, tensor in named:
            key = (
                tensor.data_ptr(),
                # tensors made in inference mode count no versions
                -1 if tensor.is_inference() else tensor._version,
                tuple(tensor.shape),
                tensor.dtype,
                sums[name],
            )
            known = self._known.get(name)
            if known is None or known[0] != key:
                known = (key, _digest(name, tensor))
                self._known[name] = known
            total.update(known[1])
        return total.hexdigest()[:32]


def tower_fingerprint(model: Any, tower: str) -> str:
    """Hash what the features of a tower depend on.

    :param model: a dual encoder, or any module with a ``tokenizer``.
    :param tower: ``"image"`` or ``"text"``.
    :return: hexadecimal digits and, for texts, the size of the vocabulary.
    """
    find = getattr(model, "state_fingerprint", None)
    if callable(find):
        found = find(tower)
    else:
        named = model.state_dict(keep_vars=True).items()
        found = FingerprintCache()((n, t) for n, t in named if isinstance(t, Tensor))
    tokenizer = getattr(model, "tokenizer", None) if tower == "text" else None
    size = getattr(tokenizer, "vocab_size", 0)
    return f"{found}-{size}"


def _gather(values: list[Tensor]) -> list[int]:
    """Bring 0-d tensors to the host with one transfer per device."""
    by_device: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        by_device.setdefault(value.device, []).append(index)
    result = [0] * len(values)
    for indices in by_device.values():
        host = torch.stack([values[i] for i in indices]).tolist()
        for index, value in zip(indices, host, strict=True):
            result[index] = value
    return result
