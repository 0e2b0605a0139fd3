"""Bottleneck adapters: places, forms, counts."""

import pytest
import torch

from avalanche_clip.models import attach_adapters
from tests.models.experts import randomise


def low(parts, x):
    hidden = torch.relu(x @ parts.down.weight.T + parts.down.bias)
    return hidden @ parts.up.weight.T + parts.up.bias


@torch.no_grad()
@pytest.mark.parametrize("form", ["serial", "parallel"])
@pytest.mark.parametrize("shared", [True, False])
def test_block__computed_by_hand(one, form, shared):
    adapters = attach_adapters(one, "image", bottleneck=3, form=form, shared=shared)
    randomise(adapters)
    block = one.blocks("image")[0].module
    made = [b.table["0"] for b in adapters.branches() if b.view.module is block]
    first, second = made if len(made) == 2 else made * 2
    x = torch.randn(2, 5, 32)
    with adapters.using_ids(-1):
        z = block.ln_1(x)
        h = block.attention(z)
        r = x + h + 0.1 * low(first, h if form == "serial" else z)
        z = block.ln_2(r)
        y = block.mlp(z)
        expected = r + y + 0.1 * low(second, y if form == "serial" else z)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_counts__are_those_of_the_papers(one):
    width, blocks = 32, 2
    sit = attach_adapters(one)
    assert sit.num_parameters == 2 * blocks * (129 * width + 64)
    sit.detach()
    coleclip = attach_adapters(
        one,
        "text",
        bottleneck=5,
        form="parallel",
        places="attention_out",
        activation="gelu",
        scale=1.0,
        dropout=0.0,
        learned_scale=True,
    )
    assert coleclip.num_parameters == blocks * (5 * width + 5 + width * 5 + width + 1)
