"""Pairs of images that a model confuses, followed over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.benchmarks.items.marks import digest_of, picture_digests
from avalanche_clip.common.arrays import read_npy
from avalanche_clip.common.checks import as_finite, require_length, require_some
from avalanche_clip.common.randomness import evaluating, seeded
from avalanche_clip.evaluation.functional._inputs import as_float_matrix
from avalanche_clip.evaluation.functional.blind_pairs import find_blind_pairs
from avalanche_clip.evaluation.suites.suite import (
    Autocast,
    Suite,
    SuiteFeatures,
    Values,
)

MOST_IMAGES = 5_000
"""All pairs of these are some 12 million, which take 400 MB if a model collapses."""

TASK = "all"
_SAMPLED = 16


class BlindPairsSuite(Suite):
    """Which pairs of fixed images does the model confuse that a reference tells apart?

    Needs no labels. A pair is blind as in :func:`clip_blind_pairs
    <avalanche_clip.evaluation.functional.blind_pairs.clip_blind_pairs>`, the model in
    the place of CLIP. The task ``"all"`` has ``blind_share`` (of all pairs, in [0, 1])
    and numbers of pairs: ``blind_count``; ``born_count``, blind now and not at the
    first evaluation, and ``healed_count``, blind then and not now;
    ``born_since_last_count`` and ``healed_since_last_count``, against the evaluation
    before this one. ``count`` is the number of images.

    Each evaluation counts as a point, the first as the state before the stream; they
    are kept in the suite's state, 8 bytes per blind pair, and in a run's checkpoints.

    :param images: fixed pictures, at most :data:`MOST_IMAGES`. Never trained on.
    :param reference: what tells images apart: features ``(N, D)``, float32 or float64;
        the path of an ``.npy`` file of them; a dual encoder; or a function that takes
        a list of pictures and returns features, such as a vision-only tower with its
        transform, or :func:`drawing_features
        <avalanche_clip.models.images.drawing_features.drawing_features>`. Encoders are
        asked once.
    :param clip_threshold: cosine to the model above which a pair may be blind.
    :param reference_threshold: cosine to the reference below which it may be.
    :param name: key of the values.
    :param batch_size: images per forward pass.
    :param num_workers: processes that read images.
    :raises ValueError: if a number is out of range, or there are too many images.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209), for the pairs and the
    thresholds; following them over a stream is our choice.
    """

    def __init__(
        self,
        images: Sequence[Any],
        reference: Any,
        *,
        clip_threshold: float = 0.95,
        reference_threshold: float = 0.6,
        name: str = "blind-pairs",
        batch_size: int = 128,
        num_workers: int = 0,
    ):
        super().__init__(name, batch_size=batch_size, num_workers=num_workers)
        require_some(images, "images to pair", least=2)
        if len(images) > MOST_IMAGES:
            raise ValueError(
                f"{len(images):,} images have too many pairs to be followed; give at "
                f"most {MOST_IMAGES:,}."
            )
        self.images, self.reference = images, reference
        self.thresholds = (
            as_finite(clip_threshold, "clip_threshold", low=-1, high=1),
            as_finite(reference_threshold, "reference_threshold", low=-1, high=1),
        )
        self._found: tuple[str, Tensor] = ("", torch.empty(0))
        self.points: list[Tensor] = []
        """Blind pairs of the first and of the last evaluation, numbers a * N + b."""

    @cached_property
    def _images_key(self) -> str:
        return digest_of(picture_digests(self.images)).hex()[:32]

    @cached_property
    def _reference_rows(self) -> Tensor:
        """Features of the reference, ``(N, D)`` on the CPU."""
        given, size = self.reference, self.features.batch_size
        if isinstance(given, (str, Path)):
            given = read_npy(given)
        elif hasattr(given, "encode_image"):
            cache, device = SuiteFeatures(batch_size=size), given.logit_scale.device
            with cache.of(given, device=device) as encoded:
                given = encoded.images(self._images_key, self.images)
        elif callable(given):
            places = torch.arange(len(self.images)).split(size)
            mode = evaluating(given) if isinstance(given, nn.Module) else nullcontext()
            with torch.no_grad(), mode, seeded(0):
                parts = [given([self.images[k] for k in part]) for part in places]
            given = torch.cat([as_float_matrix("reference", part) for part in parts])
        rows = as_float_matrix("reference", given).cpu()
        require_length(rows, len(self.images), "rows of reference", "image")
        return rows

    def check(self, model: Any) -> None:
        """Refuse another model, and images or a reference that do not fit."""
        super().check(model)
        self.identity()
        self._sample()

    def identity(self) -> dict[str, Any]:
        """Thresholds, and what tells images and reference from others.

        Encoders are told by their names; a state is refused if their features differ.
        """
        kind = self.reference
        if not callable(kind):
            name = digest_of([self._reference_rows.numpy().tobytes()]).hex()[:32]
        else:
            kind = kind if hasattr(kind, "__qualname__") else type(kind)
            name = f"{kind.__module__}.{kind.__qualname__}"
        names = ("clip_threshold", "reference_threshold")
        thresholds = dict(zip(names, self.thresholds, strict=True))
        return {**thresholds, "images": self._images_key, "reference": name}

    def evaluate(
        self,
        model: Any,
        *,
        device: str | torch.device = "cpu",
        autocast: Autocast = nullcontext,
    ) -> Values:
        """Find the blind pairs of a model, see :meth:`Suite.evaluate`."""
        size = len(self.images)
        with self.features.of(model, device=device, autocast=autocast) as encoded:
            rows = encoded.images(self._images_key, self.images)
            state = encoded.state("image")
            if self._found[0] != state:
                banks = (rows, self._reference_rows)
                pairs, _ = find_blind_pairs(banks, self.thresholds)
                self._found = (state, pairs[:, 0] * size + pairs[:, 1])
        now = self._found[1]
        first, last = self.points or (now, now)
        self.points = [first, now]
        found = {"blind_share": 2 * len(now) / (size * (size - 1))}
        found["blind_count"] = float(len(now))
        for name, then in (("", first), ("_since_last", last)):
            found[f"born{name}_count"] = _missing_from(then, now)
            found[f"healed{name}_count"] = _missing_from(now, then)
        return {TASK: {**found, "count": float(size)}}

    def blind_pairs(self, point: int = -1) -> list[tuple[int, int]]:
        """List the blind pairs of an evaluation by the numbers of their images.

        :param point: 0 for the first evaluation, -1 for the last.
        """
        return [divmod(code, len(self.images)) for code in self.points[point].tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Return the blind pairs of the first and of the last evaluation."""
        return {"points": self.points, "sample": self._sample()} if self.points else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; of an empty one, nothing.

        :raises ValueError: if the features of the reference were others.
        """
        if state:
            then, now = state["sample"].cpu(), self._sample()
            if then.shape != now.shape or not torch.allclose(then, now, atol=1e-3):
                raise ValueError(
                    f"The reference of the suite {self.name!r} gives other features "
                    "than those that were stored; resume with the same one and images."
                )
        self.points = [codes.cpu() for codes in state.get("points", ())]

    def _sample(self) -> Tensor:
        """Some features of the reference, which tell it from others."""
        rows = self._reference_rows
        return rows[:: max(1, len(rows) // _SAMPLED)].float()


def _missing_from(known: Tensor, codes: Tensor) -> float:
    """Number of those codes that are not known."""
    return float((~torch.isin(codes, known, assume_unique=True)).sum())
