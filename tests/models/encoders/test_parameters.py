import pytest
import torch

from avalanche_clip.models import attach_lora, create_dual_encoder
from avalanche_clip.models.encoders.parameters import depths
from tests.models.conftest import hf_text
from tests.models.encoders.test_dual_encoder import made
from tests.models.kinds import KINDS, convolutional
from tests.refused import refused

FORMS = [*KINDS, convolutional]


def model_of(kind, cfg, request):
    torch.manual_seed(0)
    return kind(cfg) if kind is convolutional else kind(cfg, request)


def trains(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_depths__count_blocks_between_stem_and_head(kind, tiny_cfg, request):
    model = model_of(kind, tiny_cfg, request)
    for tower in ("image", "text"):
        found = depths(model, tower)
        names = {n for n, _ in model.named_parameters() if model.tower_of(n) == tower}
        assert found.keys() == names
        blocks = len(model.blocks(tower))
        assert set(found.values()) == set(range(blocks + 2))
        stem = [name for name, depth in found.items() if depth == 0]
        words = ("embed", "conv1", "ln_pre", "norm_pre", "layrnorm", "token", "cls")
        assert all(any(word in name for word in words) for name in stem)
        head = [name for name, depth in found.items() if depth == blocks + 1]
        words = ("ln_", "norm", "proj", "head", "post_layernorm", "fc_norm")
        assert all(any(word in name for word in words) for name in head)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_unfreeze__trains_the_last_blocks_and_what_follows(kind, tiny_cfg, request):
    model = model_of(kind, tiny_cfg, request)
    everything = trains(model)
    text = {n for n in everything if model.tower_of(n) != "image"}
    blocks = len(model.blocks("image"))
    before = set()
    for count in range(blocks + 1):
        model.unfreeze("image", last_blocks=count)
        now = trains(model)
        assert text < now  # the rest of the model is left alone
        assert before < now
        before = now
        found = depths(model, "image")
        assert now - text == {n for n, d in found.items() if d > blocks - count}
    model.unfreeze(last_blocks=1)
    scale = {n for n in everything if model.tower_of(n) is None}
    both = {
        n
        for t in ("image", "text")
        for n, d in depths(model, t).items()
        if d >= len(model.blocks(t))
    }
    assert trains(model) == both | scale
    model.unfreeze()
    assert trains(model) == everything


def test_unfreeze__refuses_blocks_that_are_not_there(tiny_cfg):
    model = create_dual_encoder(tiny_cfg)
    refused("last_blocks=3.*2 blocks", model.unfreeze, "image", last_blocks=3)
    refused("last_blocks", model.unfreeze, "image", last_blocks=-1)
    assert all(p.requires_grad for p in model.parameters())
    refused("residual", convolutional(tiny_cfg).unfreeze, "image", last_blocks=1)


def test_unfreeze__last_blocks_of_16_bit_models_train_in_32(tiny_cfg):
    model = create_dual_encoder(tiny_cfg, precision="bf16")
    model.unfreeze("text", last_blocks=1)
    model.check_trainable()
    kinds = {p.dtype for p in model.parameters() if p.ndim > 1 and not p.requires_grad}
    assert torch.bfloat16 in kinds
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


# ------------------------------------------------------------- recomputed activations
def passed(model, freeze=None):
    """Loss and gradients of one step."""
    model.zero_grad()
    torch.manual_seed(1)
    size = model.transform(False).preprocessing.size
    texts = model.tokenizer(["red dog", "blue cat", "moon"])
    out = model({"image": torch.randn(3, 3, *size), "text": texts})
    logits = out.logit_scale * out.image_features @ out.text_features.T
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(3))
    loss.backward()
    return loss.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", FORMS, ids=lambda kind: kind.__name__)
def test_checkpointing__gives_the_same_gradients(kind, frozen, tiny_cfg, request):
    model = model_of(kind, tiny_cfg, request).train()
    if frozen and kind is not convolutional:
        model.unfreeze("image", last_blocks=1)
    loss, grads = passed(model)
    calls = []
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda *args: calls.append(1))
    passed(model)
    once = len(calls)
    model.set_grad_checkpointing()
    calls.clear()
    again, others = passed(model)
    assert len(calls) > once + 1  # blocks really run a second time
    torch.testing.assert_close(again, loss)
    assert grads.keys() == others.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-5, atol=1e-7)
    model.set_grad_checkpointing(False)
    calls.clear()
    passed(model)
    assert len(calls) == once


def test_checkpointing__of_a_text_tower_of_transformers(native_cfg, text_tower):
    torch.manual_seed(0)
    model = create_dual_encoder(hf_text(native_cfg, text_tower)).train()
    model.clip.text.eval()  # it has dropout
    loss, grads = passed(model)
    model.set_grad_checkpointing()
    again, others = passed(model)
    torch.testing.assert_close(again, loss)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-5, atol=1e-7)


def test_checkpointing__is_refused_where_the_second_pass_differs(tiny_cfg):
    model = create_dual_encoder(tiny_cfg)
    model.set_grad_checkpointing()
    refused(r"set_grad_checkpointing\(False\)", attach_lora, model)
    model.set_grad_checkpointing(False)
    attach_lora(model)
    refused("model.lora", model.set_grad_checkpointing)
    refused("cannot compute", made(tiny_cfg, "resnet").set_grad_checkpointing)
