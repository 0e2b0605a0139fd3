"""Retrieval of one data set with one model, outside Avalanche's loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_clip.evaluation.functional import retrieval_metrics


class FeatureBank(NamedTuple):
    """Features of a data set: images ``(N, D)``, distinct texts ``(M, D)``.

    ``owner`` holds (text, image) pairs ``(P, 2)``: equal captions are one text
    owned by several images.
    """

    image_features: Tensor
    text_features: Tensor
    owner: Tensor


def merge_captions(tokens: list[Tensor], owners: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Find captions with equal tokens.

    :param tokens: token ids per batch, ``(M_b, L_b)``; rows of several lengths
        are padded with -1 to compare.
    :param owners: image of each caption in the whole data set, ``(M_b,)``.
    :return: position of the first of each distinct caption, and the (text,
        image) pairs over distinct captions.
    """
    width = max(t.shape[1] for t in tokens)
    rows = torch.cat(
        [nn.functional.pad(t, (0, width - t.shape[1]), value=-1) for t in tokens]
    )
    _, inverse = torch.unique(rows, dim=0, return_inverse=True)
    positions = torch.arange(len(rows))
    first = torch.full((int(inverse.max()) + 1,), len(rows))
    first = first.scatter_reduce(0, inverse, positions, "amin")
    pairs = torch.unique(torch.stack([inverse, torch.cat(owners)], dim=1), dim=0)
    return first, pairs


@torch.no_grad()
def embed(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 128,
    device: str | torch.device = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    budget: Any = None,
) -> FeatureBank:
    """Encode a prepared data set once, with all captions of its images.

    :param model: a dual encoder; its mode is put back afterwards.
    :param dataset: prepared image-text data; its evaluation transforms are
        used.
    :param batch_size: images per batch.
    :param device: where the model is.
    :param autocast: makes the context of the forward passes.
    :param budget: :class:`ComputeBudget` to book the passes on as ``"search"``.
    :return: features on the CPU, float32, normalised.
    """
    dataset = dataset.eval()
    training = model.training
    model.eval()
    images, texts, tokens, owners = [], [], [], []
    seen = 0
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=dataset.collate_fn,
        generator=torch.Generator().manual_seed(0),
    )
    for batch, *_ in loader:
        tokens.append(batch["text"])
        owners.append(batch["owner"] + seen)
        seen += len(batch)
        with autocast():
            output = model(batch.to(device))
        images.append(output.image_features.float().cpu())
        texts.append(output.text_features.float().cpu())
        if budget is not None:
            budget.spend("search", images=len(batch), texts=len(batch["text"]))
    model.train(training)
    first, pairs = merge_captions(tokens, owners)
    text_features = torch.cat(texts)[first]
    return FeatureBank(torch.cat(images), text_features, pairs)


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


__all__ = ["FeatureBank", "embed", "evaluate_retrieval", "merge_captions"]
