"""MMVP-VLM, and other sets of pairs: does each statement find its image?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from avalanche_clip.benchmarks.datasets.mmvp import MMVPVLMDataset
from avalanche_clip.benchmarks.items.marks import digest_of, picture_digests
from avalanche_clip.common.checks import require_length, require_some, require_type
from avalanche_clip.evaluation.functional.pairs import pattern_metrics
from avalanche_clip.evaluation.suites.suite import Autocast, Encoded, Suite, Values

MMVP_PROMPT = "a photo of "
"""What the released code puts before each statement."""

TIE_EPS = 1e-6
"""Cosines that differ by less are a tie, which is wrong, as in retrieval."""


class MMVPVLMSuite(Suite):
    """Pairs of images that look alike to CLIP, scored pattern by pattern.

    Tasks are ``"all"`` and the patterns; metrics those of :func:`pattern_metrics
    <avalanche_clip.evaluation.functional.pairs.pattern_metrics>` on cosines, the first
    being the score of MMVP-VLM (chance is 1/4), with a 95 % interval; and
    ``blindness``, the cosine between the images of a pair. One pair of 15 is 6.7
    points: follow ``margin``, which is less noisy, or means over seeds. Cosines within
    1e-6 are a tie, which is wrong, so that a collapsed encoder scores 0.

    :param data: folder of MMVP-VLM as released, see :class:`MMVPVLMDataset
        <avalanche_clip.benchmarks.datasets.mmvp.MMVPVLMDataset>`; if files are not
        there, ``missing`` says which. Or pairs ``(images, statements, pattern, ...)``,
        such as
        :class:`BlindEmoji <avalanche_clip.benchmarks.datasets.blind_emoji.BlindEmoji>`.
    :param name: key of the values.
    :param prompt: put before each statement; that of MMVP-VLM by default, ``""`` for
        none.
    :param batch_size: images, and texts, per forward pass.
    :param num_workers: processes that transform images, which are kept in memory.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209).

    >>> from avalanche_clip.benchmarks.datasets import BlindEmoji
    >>> from avalanche_clip.models import create_dual_encoder
    >>> suite = MMVPVLMSuite(BlindEmoji(), name="blind-emoji", prompt="")
    >>> values = suite.evaluate(create_dual_encoder("tiny-emoji", "emoji-2010"))
    >>> round(values["all"]["text_to_image_acc"], 3), len(values)
    (0.474, 10)
    """

    def __init__(
        self,
        data: str | Path | Sequence[Any],
        *,
        name: str = "mmvp-vlm",
        prompt: str = MMVP_PROMPT,
        batch_size: int = 128,
        num_workers: int = 0,
    ):
        super().__init__(name, batch_size=batch_size, num_workers=num_workers)
        require_type(prompt, str, "prompt", "a string, '' for none")
        self.prompt = prompt
        self.pairs: Any = data
        if isinstance(data, (str, Path)):
            try:
                self.pairs = MMVPVLMDataset(data)
            except FileNotFoundError as error:
                self.pairs, self.missing["all"] = (), str(error)
        else:
            require_some(data, "pairs")

    def check(self, model: Any) -> None:
        """Refuse a model that is no dual encoder, and data that cannot be read."""
        super().check(model)
        self.identity()

    def identity(self) -> dict[str, Any]:
        """Prompt, number of pairs, hash of images, statements and patterns."""
        return {"prompt": self.prompt, "pairs": len(self.pairs), "data": self._read[3]}

    def evaluate(
        self,
        model: Any,
        *,
        device: str | torch.device = "cpu",
        autocast: Autocast = nullcontext,
    ) -> Values:
        """Score a model, see :meth:`Suite.evaluate`; nothing where data are missing."""
        if self.missing:
            return {}
        key = (self._read[3], self.prompt)
        with self.features.of(model, device=device, autocast=autocast) as encoded:
            return encoded.result(key, lambda: self._score(encoded))

    def _score(self, encoded: Encoded) -> Values:
        pictures, statements, patterns, key = self._read
        texts = [self.prompt + text for text in statements]
        rows, encode, _ = encoded.matched(key, pictures)
        both = encoded.images(key, pictures), rows, encode(texts)
        images, shown, said = (part.unflatten(0, (-1, 2)) for part in both)
        return pattern_metrics(
            shown @ said.transpose(1, 2),
            patterns,
            tie_eps=TIE_EPS,
            blindness=(images[:, 0] * images[:, 1]).sum(1),
        )

    @cached_property
    def _read(self) -> tuple[list[Any], list[str], list[str], str]:
        """Images and statements, two of each pair, patterns, and a hash of all."""
        images: list[Any] = []
        statements: list[str] = []
        patterns: list[str] = []
        for place in range(len(self.pairs)):
            shown, texts, pattern, *_ = self.pairs[place]
            require_length(shown, 2, f"images of pair {place}", "statement, of two")
            require_length(texts, 2, f"statements of pair {place}", "image, of two")
            images += shown
            statements += texts
            patterns.append(pattern)
        labels = repr((statements, patterns)).encode()
        key = digest_of([*picture_digests(images), labels]).hex()[:32]
        return images, statements, patterns, key


def mmvp_vlm(
    model: Any,
    data: str | Path | Sequence[Any],
    *,
    device: str | torch.device = "cpu",
    autocast: Autocast = nullcontext,
    **options: Any,
) -> Values:
    """Score a dual encoder on MMVP-VLM or other pairs, see :class:`MMVPVLMSuite`.

    :param model: on ``device``; it is left as it was.
    :param data: folder or pairs.
    :param device: where the model is.
    :param autocast: makes the context of the forward passes.
    :param options: those of the suite, such as ``prompt``.
    :return: ``"all"`` or pattern -> metric -> value.
    :raises FileNotFoundError: if files of a folder are missing.

    >>> from avalanche_clip.benchmarks.datasets import BlindEmoji
    >>> from avalanche_clip.models import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji", "icons")
    >>> round(mmvp_vlm(model, BlindEmoji(), prompt="")["all"]["text_to_image_acc"], 3)
    0.704
    """
    suite = MMVPVLMSuite(data, **options)
    if suite.missing:
        raise FileNotFoundError(suite.missing["all"])
    suite.check(model)
    return suite.evaluate(model, device=device, autocast=autocast)
