"""Mixture of features: the tokens of two image encoders as those of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.common.checks import (
    as_finite,
    require_alike,
    require_choice,
    require_length,
)


class MixtureOfFeatures(nn.Module):
    """The tokens of CLIP and of a vision-only encoder, interleaved or added.

    A tool for retrieval and for models that read tokens. Cost: both encoders run once
    per image; adapters of the paper's interleaved form belong into the encoders,
    ``nn.Sequential(encoder, adapter)``.

    :param encoders: two functions or modules, CLIP first, which make tokens
        ``(B, P, H)``, or features ``(B, H)``, of the same images: as many of one width.
        They leave class tokens out, and transform pixels that they want otherwise.
    :param mode: ``"interleave"`` gives ``2 * P`` tokens, CLIP's first, then the
        reference's, in turns; ``"add"`` gives P weighted sums.
    :param share: of **CLIP** in the sum, in [0, 1]; published tables list that of the
        reference, ``1 - share``. For ``"add"`` only, which needs it.
    :raises ValueError: if an option is unknown, missing or without effect.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209), section 4.

    >>> mix = MixtureOfFeatures([lambda x: x, lambda x: 10 * x], "add", share=0.25)
    >>> mix(torch.tensor([[[1.0], [2.0]]])).flatten().tolist()
    [7.75, 15.5]
    """

    def __init__(
        self,
        encoders: Sequence[Callable[[Tensor], Tensor]],
        mode: str = "interleave",
        *,
        share: float | None = None,
    ):
        super().__init__()
        require_choice("mode", mode, ("interleave", "add"))
        if (share is None) is (mode == "add"):
            raise ValueError(
                f"share={share!r} given with mode={mode!r}; 'add' needs CLIP's share, "
                "'interleave' has none."
            )
        require_length(encoders, 2, "encoders", "CLIP and reference")
        self.clip_encoder, self.reference_encoder = encoders
        self.share = None if share is None else as_finite(share, "share", low=0, high=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the mixed tokens, ``(B, 2P, H)`` or ``(B, P, H)``.

        Features ``(B, H)`` count as one token; their sums stay features.
        """
        return self.mix(self.clip_encoder(images), self.reference_encoder(images))

    def mix(self, clip: Tensor, reference: Tensor) -> Tensor:
        """Mix tokens that were made before, see :meth:`forward`.

        :raises ValueError: if the shapes differ.
        """
        require_alike(
            "give both the same grid and width", clip=clip, reference=reference
        )
        if self.share is not None:
            return self.share * clip + (1 - self.share) * reference
        both = torch.stack([clip, reference], dim=-2)
        return both.view(len(clip), -1, clip.shape[-1])

    def encode_image(self, images: Tensor) -> Tensor:
        """Return one feature of length 1 per image, for retrieval.

        The mean of the tokens. Interleaved tokens are averaged encoder by encoder and
        joined, each half of the same length, so that a cosine is the mean of both
        encoders' cosines.

        :return: ``(B, H)``, or ``(B, 2H)`` when interleaved.
        """
        tokens = self(images)
        if tokens.ndim > 3:
            raise ValueError(
                f"tokens of shape {tuple(tokens.shape)}; flatten grids: (B, P, H)."
            )
        parts = (
            [tokens] if self.share is not None else [tokens[:, 0::2], tokens[:, 1::2]]
        )
        means = [part.mean(1) if part.ndim == 3 else part for part in parts]
        return F.normalize(
            torch.cat([F.normalize(m, dim=-1) for m in means], -1), dim=-1
        )
