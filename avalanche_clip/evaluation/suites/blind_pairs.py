"""Pairs of images that a model confuses, followed over a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.benchmarks.datasets.emoji import EmojiImages
from avalanche_clip.benchmarks.items.marks import digest_of, picture_digest
from avalanche_clip.common.arrays import read_npy
from avalanche_clip.common.checks import (
    as_finite,
    require_length,
    require_some,
    require_type,
)
from avalanche_clip.common.fingerprint import tower_fingerprint
from avalanche_clip.evaluation.functional._inputs import as_float_matrix
from avalanche_clip.evaluation.functional.blind_pairs import Banks
from avalanche_clip.evaluation.suites.suite import (
    Autocast,
    Suite,
    SuiteFeatures,
    Values,
    bare,
)
from avalanche_clip.models.images.drawing_features import drawing_features

TASK = "all"

MOST_IMAGES = 5_000
"""All pairs of these are some 12 million, which take 400 MB if a model collapses."""

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

    :param images: fixed pictures, or items that begin with one, such as those of a raw
        image-text data set; at most :data:`MOST_IMAGES`. Never trained on.
    :param reference: what tells images apart: features ``(N, D)``, float32 or float64;
        the path of an ``.npy`` file of them; a dual encoder that is not trained; or a
        function that takes a list of pictures and returns features, such as a
        vision-only encoder with its transform, or :func:`drawing_features
        <avalanche_clip.models.images.drawing_features.drawing_features>`. Encoders run
        once.
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
        self.images = _Pictures(images)
        self.reference = reference
        self.thresholds = (
            as_finite(clip_threshold, "clip_threshold", low=-1, high=1),
            as_finite(reference_threshold, "reference_threshold", low=-1, high=1),
        )
        self._found: tuple[str, Tensor] = ("", torch.empty(0))
        self._forget()

    def _forget(self) -> None:
        """Have no evaluation behind."""
        self.first: Tensor | None = None
        """Blind pairs of the first evaluation, numbers ``a * N + b``, ascending."""
        self.last: Tensor | None = None
        """Blind pairs of the last evaluation."""

    def check(self, model: Any) -> None:
        """Refuse another model, and images or a reference that do not fit."""
        super().check(model)
        if self.reference is bare(model):
            raise ValueError(
                f"The suite {self.name!r} has the model itself as its reference, which "
                "would change with it; give a copy, or another encoder."
            )
        require_length(self._apart, len(self.images), "rows of reference", "image")

    def identity(self) -> dict[str, Any]:
        """Thresholds, and what tells images and reference from others."""
        clip, reference = self.thresholds
        return {
            "clip_threshold": clip,
            "reference_threshold": reference,
            "images": self.images.content,
            "reference": _identity_of(self.reference),
        }

    def evaluate(
        self,
        model: Any,
        *,
        device: str | torch.device = "cpu",
        autocast: Autocast = nullcontext,
    ) -> Values:
        """Find the blind pairs of a model, see :meth:`Suite.evaluate`."""
        reference, size = self._apart, len(self.images)
        with self.features.of(model, device=device, autocast=autocast) as encoded:
            rows = encoded.images(self.images.content, self.images.sequence)
            state = encoded.state("image")
            if self._found[0] != state:
                pairs = Banks(rows, reference).blind(*self.thresholds)
                self._found = (state, pairs[:, 0] * size + pairs[:, 1])
        now = self._found[1]
        first, last = (now if x is None else x for x in (self.first, self.last))
        self.first, self.last = first, now
        return {
            TASK: {
                "blind_share": 2 * len(now) / (size * (size - 1)),
                "blind_count": float(len(now)),
                "born_count": _missing_from(first, now),
                "healed_count": _missing_from(now, first),
                "born_since_last_count": _missing_from(last, now),
                "healed_since_last_count": _missing_from(now, last),
                "count": float(size),
            }
        }

    def blind_pairs(self, which: str = "last") -> list[tuple[int, int]]:
        """List the blind pairs of an evaluation, by number.

        :param which: ``"first"`` or ``"last"``.
        """
        codes = {"first": self.first, "last": self.last}[which]
        found = [] if codes is None else codes.tolist()
        return [divmod(code, len(self.images)) for code in found]

    def state_dict(self) -> dict[str, Any]:
        """Return the blind pairs of the first and of the last evaluation."""
        if self.first is None:
            return {}
        rows = self._sample()
        return {"reference": rows, "first": self.first, "last": self.last}

    def _sample(self) -> Tensor:
        """Some features of the reference, which tell it from others."""
        return self._apart[:: max(1, len(self._apart) // _SAMPLED)].float()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; of an empty one, nothing.

        :raises ValueError: if the features of the reference were others.
        """
        self._forget()
        if state:
            known, rows = state["reference"].cpu(), self._sample()
            if known.shape != rows.shape or not torch.allclose(known, rows, atol=1e-3):
                raise ValueError(
                    f"The reference of the suite {self.name!r} gives other features "
                    "than those that were stored; resume with the same one and the "
                    "same images."
                )
            self.first, self.last = state["first"].cpu(), state["last"].cpu()

    @cached_property
    def _apart(self) -> Tensor:
        """Features of the reference, float, on the CPU, ``(N, D)``."""
        given = self.reference
        if isinstance(given, (str, Path)):
            given = read_npy(given)
        elif _is_dual_encoder(given):
            with SuiteFeatures(batch_size=self.features.batch_size).of(
                given, device=next(given.parameters()).device
            ) as encoded:
                given = encoded.images(self.images.content, self.images.sequence)
        elif callable(given):
            given = self._described(given)
        rows = as_float_matrix("reference", given).cpu()
        Banks(rows, rows)  # refuses rows without a direction now, not in the run
        return rows

    def _described(self, encode: Callable[[Iterable[Any]], Any]) -> Tensor:
        size = self.features.batch_size
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.images), size):
                end = min(start + size, len(self.images))
                rows = encode([self.images[place] for place in range(start, end)])
                parts.append(as_float_matrix("reference", rows).cpu())
        return torch.cat(parts)


class _Pictures:
    """The pictures of a sequence of them, or of items that begin with one."""

    def __init__(self, items: Sequence[Any]):
        self.items = items
        self.sequence: Any = self

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        item = self.items[place]
        return item[0] if isinstance(item, (tuple, list)) else item

    @cached_property
    def content(self) -> str:
        """Hash of all pictures, read once, 32 hexadecimal digits."""
        found = []
        for place in range(len(self)):
            found.append(picture_digest(self[place]) or b"")
            give = "a PIL image or a tensor"
            require_type(found[-1] or None, bytes, f"Image {place}", give)
        return digest_of(found).hex()[:32]


def _missing_from(known: Tensor, codes: Tensor) -> float:
    """Number of those codes that are not known."""
    return float((~torch.isin(codes, known, assume_unique=True)).sum())


def _is_dual_encoder(value: Any) -> bool:
    return isinstance(value, nn.Module) and hasattr(value, "encode_image")


def _identity_of(reference: Any) -> str:
    """Tell a reference from others by its content, or a function by its name."""
    if _is_dual_encoder(reference):
        return tower_fingerprint(reference, "image")
    if callable(reference):
        kind = reference if hasattr(reference, "__qualname__") else type(reference)
        return f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(reference, (str, Path)):
        reference = read_npy(reference)
    rows = as_float_matrix("reference", reference).cpu().contiguous()
    return digest_of([rows.numpy().tobytes()]).hex()[:32]


def blind_emoji_suite(
    *, clip_threshold: float = 0.8, name: str = "blind-pairs", batch_size: int = 128
) -> BlindPairsSuite:
    """Follow the blind pairs of all 1,911 Twemoji drawings, without downloads.

    The reference is :func:`drawing_features
    <avalanche_clip.models.images.drawing_features.drawing_features>`, by which a pair
    must be below 0.6; ``tiny-emoji`` with the weights ``emoji-2010`` confuses 2,729.

    :param clip_threshold: lower than the published one, which suits ViT-L-14: small
        models spread drawings wider.
    :param name: key of the values.
    :param batch_size: images per forward pass.
    """
    return BlindPairsSuite(
        EmojiImages("twemoji"),  # type: ignore[arg-type]
        drawing_features,
        clip_threshold=clip_threshold,
        name=name,
        batch_size=batch_size,
    )
