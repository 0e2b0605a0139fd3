"""Options and models that are refused before anything is attached."""

import pytest
import torch

from avalanche_clip.models import (
    attach_adapters,
    attach_language_adapters,
    attach_lora,
    attach_prompts,
    merge_adapters,
)
from avalanche_clip.models.encoders.blocks import ATTACHMENTS
from tests.models.kinds import convolutional
from tests.models.peft.test_branch import FORMS
from tests.refused import refused

INF = float("inf")
TOKENS = {"kind": "tokens", "tower": "image"}
WRONG = {
    attach_adapters: [
        ({"scale": 0.0, "learned_scale": True}, "never moves"),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"places": "mlp"}, "places='mlp'"),
        ({"places": ()}, "places"),
        ({"form": "both"}, "form='both'"),
        ({"activation": "tanh"}, "activation='tanh'"),
    ],
    attach_lora: [
        ({"rank": 0}, "rank=0"),
        ({"alpha": -1}, "alpha=-1"),
        ({"targets": ("qk",)}, "targets='qk'"),
        ({"targets": ()}, "empty"),
        ({"targets": None}, "empty"),
        ({"targets": [["q"]]}, "is unknown"),
        ({"learned_scale": "no"}, "True or False"),
        ({"targets": ("qkv", "q")}, "twice"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"init": "xavier", "targets": ("q", "out")}, "'qkv'.*leave it out"),
    ],
    attach_prompts: [
        ({"kind": "deep"}, "kind='deep'"),
        ({"length": 0}, "length=0"),
        ({"kind": "tokens"}, "tower='image'"),
        ({**TOKENS, "blocks": [0]}, "blocks"),
        ({"scale": INF}, "scale"),
    ],
    attach_language_adapters: [
        ({"kind": "prefix"}, "kind="),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"kind": "lora", "rank": 0}, "rank=0"),
        ({"kind": "lora", "alpha": -1.0}, "alpha=-1"),
    ],
}


@pytest.mark.parametrize("attach", WRONG, ids=lambda attach: attach.__name__)
def test_options__are_checked(one, tiny_cfg, attach):
    for options, message in WRONG[attach]:
        refused(message, attach, one, **options)
        assert not any(one._modules.get(name) for name in ATTACHMENTS)
        assert one.logit_scale.requires_grad
    if attach is attach_prompts:
        refused("tiny-emoji-vit", attach, convolutional(tiny_cfg), **TOKENS)


@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2), "tiny-emoji-vit"])
@pytest.mark.parametrize(
    "call", [*(attach for attach, _ in FORMS.values()), merge_adapters]
)
def test_models__of_other_kinds_are_refused(model, call):
    refused("DualEncoder", call, model)
