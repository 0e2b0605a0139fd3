"""Retrieval of one data set with one model, outside Avalanche's loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks.items.prepare import require_prepared
from avalanche_clip.common.checks import as_size, require_some
from avalanche_clip.common.progress import progress
from avalanche_clip.common.randomness import evaluating
from avalanche_clip.evaluation.functional import retrieval_metrics
from avalanche_clip.evaluation.metrics.retrieval import FeatureBank, RetrievalMetric


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
    require_some(dataset, "samples to evaluate on")
    # One copy at the end, so that a GPU does not wait after each batch.
    metric = RetrievalMetric()
    metric.device = device
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=dataset.collate_fn,
        generator=torch.Generator().manual_seed(0),
    )
    tokenizer: Any = model.tokenizer
    with evaluating(model):
        for batch, *_ in progress(loader, "encoding"):
            with autocast():
                output = (encode or model)(batch.to(device))
            metric.collect(output, batch, tokenizer.pad_id)
            if budget is not None:
                stored = encode is not None and "teacher_image" in batch
                number = 0 if stored else len(batch)
                budget.spend("search", images=number, texts=len(batch["text"]))
    return metric.bank()


def evaluate_retrieval(
    model: nn.Module, dataset: Any, **options: Any
) -> dict[str, float]:
    """Retrieval metrics of a model on a data set, both directions.

    :param model: a dual encoder.
    :param dataset: prepared image-text data.
    :param options: see :func:`embed`.
    :return: see :func:`retrieval_metrics`.
    """
    return retrieval_metrics(*embed(model, dataset, **options))
