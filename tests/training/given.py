"""A model whose features are given: those of an image are its first numbers."""

import math

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets
from torch import nn

from avalanche_clip.benchmarks import (
    ClassPrompts,
    make_image_text_dataset,
    prepare_benchmark,
)
from tests.helpers import StubDualEncoder

LETTER_A = 3
"""Its token."""


class GivenFeatures(StubDualEncoder):
    """The text "a" has the first row of the table, "b" the second.

    :param rows: table of text features, ``(classes, D)``.
    :param scale: of logits.
    """

    def __init__(self, rows, scale=2.0):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(rows))
        with torch.no_grad():
            self.logit_scale.fill_(math.log(scale))
        self.logit_scale.requires_grad_(False)
        self.texts = 0

    def _raw_image(self, image):
        return image.flatten(1)[:, : self.table.shape[1]]

    def _raw_text(self, text):
        self.texts += len(text)
        return self.table[text[:, 1] - LETTER_A]


def given_benchmark(model, steps, tests):
    """Classes are letters; class 0 is "a".

    :param steps: ``(features, labels)`` of each training step.
    :param tests: the same of each test set.
    """
    streams, first = {}, 0
    for name, parts in (("train", steps), ("test", tests)):
        streams[name] = []
        for features, labels in parts:
            images = torch.zeros(len(labels), 3, 8, 8)
            if len(labels):
                rows = torch.tensor(features)
                images[:, 0, 0, : rows.shape[1]] = rows
            data = make_image_text_dataset(
                [(image, "a") for image in images],
                targets=np.array(labels),
                sample_ids=np.arange(len(labels)) + first,
            )
            first += len(labels)
            streams[name].append(data)
    benchmark = benchmark_from_datasets(**streams)
    letters = [chr(ord("a") + k) for k in range(len(model.table))]
    benchmark.class_prompts = ClassPrompts(letters, "{}")
    return prepare_benchmark(benchmark, model)
