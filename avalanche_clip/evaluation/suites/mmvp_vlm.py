"""MMVP-VLM, and other sets of pairs: does each statement find its image?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from avalanche_clip.benchmarks.datasets.mmvp import MMVPVLMDataset
from avalanche_clip.benchmarks.items.marks import digest_of, picture_digest
from avalanche_clip.common.checks import require_some, require_type
from avalanche_clip.evaluation.functional.intervals import (
    bootstrap_interval,
    wilson_interval,
)
from avalanche_clip.evaluation.functional.pairs import pattern_metrics
from avalanche_clip.evaluation.suites.suite import Autocast, Encoded, Suite, Values

MMVP_PROMPT = "a photo of "
"""What the released code puts before each statement."""

TIE_EPS = 1e-6
"""Cosines that differ by less are a tie, which is wrong, as in retrieval."""


_GIVE = "a PIL image or a tensor"


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
    :param num_workers: processes that read images.

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
        self.pairs: Any = ()
        if isinstance(data, (str, Path)):
            try:
                self.pairs = MMVPVLMDataset(data)
            except FileNotFoundError as error:
                self.missing["all"] = str(error)
        else:
            require_some(data, "pairs")
            self.pairs = data

    def check(self, model: Any) -> None:
        """Refuse a model that is no dual encoder, and data that cannot be read."""
        super().check(model)
        self.identity()

    def identity(self) -> dict[str, Any]:
        """Prompt, and hashes of images and statements; ``None`` for missing data."""
        if self.missing:
            return {"prompt": self.prompt, "pairs": None}
        content = self._content
        return {
            "prompt": self.prompt,
            "pairs": len(content.patterns),
            "images": content.images,
            "labels": content.labels,
        }

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
        key = tuple(self.identity().items())
        with self.features.of(model, device=device, autocast=autocast) as encoded:
            return encoded.result(key, lambda: self._score(encoded))

    def _score(self, encoded: Encoded) -> Values:
        content = self._content
        texts = [self.prompt + text for pair in content.statements for text in pair]
        pictures: Any = _Images(self.pairs)
        rows = encoded.images(content.images, pictures), encoded.texts(texts)
        images, said = (part.unflatten(0, (-1, 2)) for part in rows)
        S = images @ said.transpose(1, 2)
        values = pattern_metrics(S, content.patterns, tie_eps=TIE_EPS)
        alike = (images[:, 0] * images[:, 1]).sum(1)
        hits = []
        for task, found in values.items():
            if task == "all":
                continue
            places = [n for n, other in enumerate(content.patterns) if other == task]
            found["blindness"] = alike[places].mean().item()
            right = round(found["text_to_image_acc"] * len(places))
            hits.append([1.0] * right + [0.0] * (len(places) - right))
            self._bound(found, wilson_interval(right, len(places)))
        means = [found["blindness"] for task, found in values.items() if task != "all"]
        values["all"]["blindness"] = sum(means) / len(means)
        self._bound(values["all"], bootstrap_interval(hits))
        return values

    def _bound(self, found: dict[str, float], ends: tuple[float, float]) -> None:
        """Put the interval of the score and the number of images in."""
        found["text_to_image_acc_low"], found["text_to_image_acc_high"] = ends
        found["count"] = 2 * found["pair_count"]

    @cached_property
    def _content(self) -> _Content:
        """Statements, patterns and hashes; each pair is read once."""
        statements, patterns, pixels = [], [], []
        for place in range(len(self.pairs)):
            images, texts, pattern, *_ = self.pairs[place]
            if len(images) != 2 or len(texts) != 2:
                raise ValueError(
                    f"Pair {place} has {len(images)} images and {len(texts)} "
                    "statements; give two of each."
                )
            for image in images:
                pixels.append(picture_digest(image) or b"")
                what = f"An image of pair {place}"
                require_type(pixels[-1] or None, bytes, what, _GIVE)
            statements.append(tuple(texts))
            patterns.append(str(pattern))
        labels = repr((statements, patterns)).encode()
        hashes = (digest_of(pieces).hex()[:32] for pieces in (pixels, [labels]))
        return _Content(statements, patterns, *hashes)


class _Content(NamedTuple):
    """What pairs hold besides their images, and hashes of both."""

    statements: list[tuple[str, ...]]
    patterns: list[str]
    images: str
    labels: str


class _Images:
    """The images of pairs, one after the other."""

    def __init__(self, pairs: Any):
        self.pairs = pairs
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, item: int) -> Any:
        pair, place = divmod(item, 2)
        if self._last[0] != pair:  # both images are opened at once
            self._last = (pair, self.pairs[pair][0])
        return self._last[1][place]


def mmvp_vlm(
    model: Any,
    data: str | Path | Sequence[Any],
    *,
    prompt: str = MMVP_PROMPT,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    autocast: Autocast = nullcontext,
) -> Values:
    """Score a dual encoder on MMVP-VLM or other pairs, see :class:`MMVPVLMSuite`.

    :param model: on ``device``; it is left as it was.
    :return: ``"all"`` or pattern -> metric -> value.
    :raises FileNotFoundError: if files of a folder are missing.

    >>> from avalanche_clip.benchmarks.datasets import BlindEmoji
    >>> from avalanche_clip.models import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji", "icons")
    >>> round(mmvp_vlm(model, BlindEmoji(), prompt="")["all"]["text_to_image_acc"], 3)
    0.704
    """
    suite = MMVPVLMSuite(data, prompt=prompt, batch_size=batch_size)
    if suite.missing:
        raise FileNotFoundError(suite.missing["all"])
    suite.check(model)
    return suite.evaluate(model, device=device, autocast=autocast)
