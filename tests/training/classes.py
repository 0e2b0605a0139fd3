"""Small labelled data and strategies on class names, for tests."""

from __future__ import annotations

import numpy as np
import torch

from avalanche_clip.benchmarks import (
    class_incremental_benchmark,
    multi_domain_benchmark,
    prepare_benchmark,
)
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import IMAGE_SIZE, WORDS, adamw, quiet_evaluator, stub_model

TEMPLATES = ("a {}.", "the {} b")


class Labelled:
    """Random images around one mean per class, with labels; counts reads.

    :param targets: labels, any sequence.
    :param first: number of the first class in the world of means.
    """

    def __init__(self, targets, *, first=0, seed=0, noise=0.5):
        self.targets = list(targets)
        shape = (3, IMAGE_SIZE, IMAGE_SIZE)
        means = torch.randn(64, *shape, generator=torch.Generator().manual_seed(7))
        own = torch.randn(
            len(self.targets), *shape, generator=torch.Generator().manual_seed(seed)
        )
        rows = [first + int(t) for t in self.targets]
        self.images = means[rows] + noise * own if rows else own
        self.reads = []

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.images[index], self.targets[index]


def cycle(classes, per_class):
    """Labels ``0 .. classes-1`` in turn."""
    return [k % classes for k in range(classes * per_class)]


def names_of(first, count):
    """Distinct two-letter names."""
    return [
        WORDS[i % 26] + WORDS[(7 * i + 3) % 26] for i in range(first, first + count)
    ]


def domain(classes, first, seed, *, train=6, test=3, name=None, templates=TEMPLATES):
    """One domain of ``classes`` classes."""
    return (
        Labelled(cycle(classes, train), first=first, seed=seed),
        Labelled(cycle(classes, test), first=first, seed=100 + seed),
        names_of(first, classes),
        templates,
        name or f"domain-{seed}",
    )


def domains(sizes=(3, 4, 2), **options):
    """Several domains with consecutive classes."""
    starts = np.cumsum([0, *sizes]).tolist()
    return [
        domain(n, start, seed, **options)
        for seed, (n, start) in enumerate(zip(sizes, starts))
    ]


def domain_benchmark(model=None, sizes=(3, 4, 2), prepare=True, **options):
    """A prepared multi-domain benchmark on the stub."""
    benchmark = multi_domain_benchmark(domains(sizes), **options)
    if not prepare:
        return benchmark
    return prepare_benchmark(benchmark, model or stub_model())


def class_benchmark(model=None, classes=6, increment=2, **options):
    """A prepared class-incremental benchmark on the stub."""
    benchmark = class_incremental_benchmark(
        Labelled(cycle(classes, 6)),
        Labelled(cycle(classes, 3), seed=100),
        names_of(0, classes),
        TEMPLATES,
        increment=increment,
        **options,
    )
    return prepare_benchmark(benchmark, model or stub_model())


def accuracy_evaluator():
    from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics

    return quiet_evaluator(
        [
            accuracy_metrics(experience=True, stream=True),
            loss_metrics(epoch=True, experience=True),
        ]
    )


def class_strategy(model=None, cls=ClassNameTemplate, **options):
    """A strategy on the stub: 6 images per step, 5 steps per experience."""
    defaults = {
        "optimizer": adamw,
        "train_mb_size": 6,
        "budget_iterations": 5,
        "evaluator": accuracy_evaluator(),
    }
    return cls(model=model or stub_model(), **{**defaults, **options})
