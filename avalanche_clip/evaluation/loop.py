"""Retrieval of one data set with one model, outside Avalanche's loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks.items.prepare import require_prepared
from avalanche_clip.common.checks import as_size
from avalanche_clip.common.randomness import evaluating
from avalanche_clip.evaluation.functional import (
    merge_equal_pairs,
    retrieval_metrics,
)


class FeatureBank(NamedTuple):
    """Features of a data set: distinct images ``(N, D)`` and texts ``(M, D)``.

    ``owner`` holds (text, image) pairs ``(P, 2)``: equal captions are one text
    owned by several images, equal pictures one image with the captions of all its
    samples, see :func:`merge_equal_pairs`.
    """

    image_features: Tensor
    text_features: Tensor
    owner: Tensor


@torch.no_grad()
def embed(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    budget: Any = None,
    encode: Callable[[Any], Any] | None = None,
) -> FeatureBank:
    """Encode a prepared data set once, with all captions of its images.

    :param model: a dual encoder; its mode is put back afterwards.
    :param dataset: prepared image-text data; its evaluation transforms are
        used.
    :param batch_size: images per batch.
    :param device: where the model is.
    :param autocast: makes the context of the forward passes.
    :param budget: :class:`ComputeBudget` to book the passes on as ``"search"``.
    :param encode: encodes a batch instead of the model, such as a strategy with
        stored image features (then no image is booked).
    :return: features on the CPU, float32, normalised.
    """
    batch_size = as_size(batch_size, "batch_size")
    dataset = dataset.eval()
    require_prepared(dataset, model)
    images, texts = [], []
    marks: dict[str, list[Tensor]] = {}
    seen = 0
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=dataset.collate_fn,
        generator=torch.Generator().manual_seed(0),
    )
    with evaluating(model):
        for batch, *_ in loader:
            for name, rows in _marks(batch).items():
                marks.setdefault(name, []).append(rows)
            marks.setdefault("owner", []).append(batch["owner"] + seen)
            seen += len(batch)
            with autocast():
                output = (encode or model)(batch.to(device))
            images.append(output.image_features.float())
            texts.append(output.text_features.float())
            if budget is not None:
                stored = encode is not None and "teacher_image" in batch
                number = 0 if stored else len(batch)
                budget.spend("search", images=number, texts=len(batch["text"]))
    # One copy at the end, so that a GPU does not wait after each batch.
    image_features, text_features = (torch.cat(p).cpu() for p in (images, texts))
    shown, said, pairs = merge_equal_pairs(
        torch.cat(marks["owner"]),
        seen,
        pictures=marks.get("pictures"),
        captions=marks["captions"],
        languages=torch.cat(marks["languages"]) if "languages" in marks else None,
        pad_id=getattr(getattr(model, "tokenizer", None), "pad_id", 0),
    )
    return FeatureBank(image_features[shown], text_features[said], pairs)


def _marks(batch: Any) -> dict[str, Tensor]:
    """What tells the captions and pictures of a batch apart."""
    found = {"captions": batch.get("caption_key", batch["text"])}
    if "image_key" in batch:
        found["pictures"] = batch["image_key"]
    if "language" in batch:
        found["languages"] = batch["language"][batch["owner"]]
    return found


def evaluate_retrieval(
    model: nn.Module, dataset: Any, **options: Any
) -> dict[str, float]:
    """Retrieval metrics of a model on a data set, both directions.

    :param model: a dual encoder.
    :param dataset: prepared image-text data.
    :param options: see :func:`embed`.
    :return: see :func:`retrieval_metrics`.
    """
    bank = embed(model, dataset, **options)
    return retrieval_metrics(bank.image_features, bank.text_features, bank.owner)
