"""Sizes are whole numbers above 0 in every constructor."""

import pytest
import torch

from avalanche_clip.models import (
    AutoSelector,
    MoEAdapter,
    Preprocessing,
    SelectorTraining,
    attach_language_adapters,
    create_dual_encoder,
    noisy_top_k_gates,
)
from avalanche_clip.models.text.learning import train_bpe
from avalanche_clip.models.text.tokenizers import OpenCLIPTokenizer
from tests.refused import refused


def preprocessing(size):
    return Preprocessing(size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)


USES = {
    "context_length": lambda n: OpenCLIPTokenizer(n, trim=True),
    "hidden": lambda n: AutoSelector(hidden=n),
    "batch_size": lambda n: SelectorTraining(batch_size=n),
    "task_iterations": lambda n: SelectorTraining(task_iterations=n),
    "decay_epochs": lambda n: SelectorTraining(decay_epochs=n),
    "num_experts": lambda n: MoEAdapter(8, num_experts=n, top_k=1),
    "bottleneck": lambda n: MoEAdapter(8, bottleneck=n),
    "width": lambda n: MoEAdapter(n),
    "k": lambda n: noisy_top_k_gates(torch.ones(2, 3), n),
    "vocab_size": lambda n: train_bpe({"ab": 1}, n, alphabet="ab"),
    "size": preprocessing,
    "text_length": lambda n: create_dual_encoder("tiny-emoji").macs(n),
    "rank": lambda n: attach_language_adapters(
        create_dual_encoder("tiny-emoji"), kind="lora", rank=n
    ),
}


@pytest.mark.parametrize(
    "value", [True, False, 0, -1, 2.0, "2", float("nan")], ids=repr
)
@pytest.mark.parametrize("name", USES)
def test_sizes__others_are_refused_by_name(name, value):
    refused(name, USES[name], value, error=(ValueError, TypeError))
