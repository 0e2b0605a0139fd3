"""Gradient accumulation that equals the big batch, by a feature cache.

A contrastive loss does not split over chunks: each pair is compared with all
others. So features of all chunks are computed first without a graph, the loss
and all penalties are taken on the whole batch, and a second pass replays each
chunk, random numbers included, and pushes the feature gradients through it.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup", RepL4NLP 2021 (arXiv 2101.06983), applied to a two-tower model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.randomness import rng_state, set_rng_state
from avalanche_clip.models.encoders.output import CLIPOutput

Encode = Callable[[Any], CLIPOutput]


def _tensors(output: CLIPOutput) -> dict[str, Tensor]:
    aux = {f"aux.{key}": value for key, value in (output.aux or {}).items()}
    found = {**output._asdict(), **aux}
    return {key: value for key, value in found.items() if isinstance(value, Tensor)}


class FeatureCache:
    """Features of one batch, computed in chunks, with gradients to replay.

    Memory: activations of one chunk plus ``O(B d)`` features. Time: one more
    forward pass.

    :param batch: the whole batch; needs ``split(chunks)``.
    :param chunks: number of parts.
    :param device: device whose random numbers are replayed.
    """

    def __init__(self, batch: Any, chunks: int, device: torch.device):
        self.parts = batch.split(chunks)
        self.sizes = [len(part) for part in self.parts]
        self.device = device
        self.rng: list[dict[str, Any]] = []
        self.leaves: list[dict[str, Tensor]] = []

    def forward(self, encode: Encode) -> CLIPOutput:
        """Encode all chunks without a graph and join them.

        :param encode: model call on one part.
        :return: output of the whole batch; its tensors lead to leaves that
            collect gradients.
        """
        for part in self.parts:
            self.rng.append(rng_state(self.device))
            with torch.no_grad():
                tensors = _tensors(encode(part))
            self.leaves.append(
                {
                    k: v.detach().requires_grad_(v.is_floating_point())
                    for k, v in tensors.items()
                }
            )
        joined = {key: self._join(key) for key in self.leaves[0]}
        aux = {k[4:]: joined.pop(k) for k in list(joined) if k.startswith("aux.")}
        return CLIPOutput(**joined, aux=aux or None)

    def _join(self, key: str) -> Tensor:
        values = [leaf[key] for leaf in self.leaves]
        if values[0].dim() > 0:
            return torch.cat(values)
        if key == "aux.balance_loss":  # a mean over samples
            total = sum(self.sizes)
            pairs = zip(values, self.sizes, strict=True)
            return torch.stack([v * (n / total) for v, n in pairs]).sum()
        return values[0]

    def backward(self, encode: Encode, last: Encode) -> None:
        """Replay every chunk and push the collected gradients through it.

        :param encode: model call on one part.
        :param last: model call on the last part; under DDP the one that
            synchronises gradients.
        """
        # Plugins may have drawn numbers since the first pass: go on from there.
        now = rng_state(self.device)
        for i, part in enumerate(self.parts):
            set_rng_state(self.rng[i], self.device)
            call = last if i == len(self.parts) - 1 else encode
            tensors = _tensors(call(part))
            terms = [
                (tensors[key] * leaf.grad).sum()
                for key, leaf in self.leaves[i].items()
                if leaf.grad is not None and tensors[key].requires_grad
            ]
            if terms:
                torch.stack([t.float() for t in terms]).sum().backward()
        set_rng_state(now, self.device)
