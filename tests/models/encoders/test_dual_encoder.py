import copy
import json
import math
import pickle

import pytest
import torch

from avalanche_clip.models import CLIPOutput, create_dual_encoder
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from tests.refused import refused

TEXTS = ["red dog", "blue", "green cat bird sun"]


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    return create_dual_encoder(tiny_cfg)


@pytest.fixture
def batch(model):
    torch.manual_seed(1)
    return {"image": torch.randn(3, 3, 32, 32), "text": model.tokenizer(TEXTS)}


def full_length(model, text):
    missing = model.context_length - text.shape[1]
    return torch.nn.functional.pad(text, (0, missing), value=model.tokenizer.pad_id)


CONVNET = {"timm_model_name": "test_convnext2", "image_size": 32}
RESNET = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 32}
POOLER = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
MULTIMODAL = {"context_length": 12, "vocab_size": 40, "width": 32}
# kind -> settings: of the model, "image" and "text" those of a tower
KINDS = {
    "native": {},
    "convnet": {"vision_cfg": CONVNET},
    "resnet": {"vision_cfg": RESNET},
    "timm_vit": {"vision_cfg": {"timm_model_name": "test_vit", "image_size": 64}},
    "custom": {"custom_text": True},
    "eos": {"text": {"pool_type": "eos", "eos_id": 39}},
    "quick": {"quick_gelu": True},
    "sigmoid": {
        "init_logit_bias": -10,
        "custom_text": True,
        "text": {"no_causal_mask": True, "pool_type": "last"},
    },
    "coca": {
        "custom_text": True,
        "image": POOLER,
        "text": {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": MULTIMODAL | {"heads": 2, "layers": 1},
    },
}
EVA = {"vision_cfg": {"timm_model_name": "eva02_tiny_patch14_224", "image_size": 28}}


def made(cfg, kind, **options):
    own, values = cfg["model_cfg"], dict((KINDS | {"eva": EVA})[kind])
    own["vision_cfg"] |= values.pop("image", {})
    own["text_cfg"] |= values.pop("text", {})
    return create_dual_encoder({**cfg, "model_cfg": own | values}, **options)


def any_model(kind, cfg, request):
    if kind.startswith("hf"):
        return create_dual_encoder(request.getfixturevalue(kind))
    return made(cfg, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_features__equal_open_clip_bit_for_bit(kind, training, tiny_cfg):
    model = made(tiny_cfg, kind).train(training)
    image = torch.randn(3, 3, model.image_size, model.image_size)
    text = full_length(model, model.tokenizer(TEXTS))
    with torch.no_grad():
        out = model({"image": image, "text": text})
        expected_image = model.clip.encode_image(image, normalize=True)
        expected_text = model.clip.encode_text(text, normalize=True)
    assert torch.equal(out.image_features, expected_image)
    assert torch.equal(out.text_features, expected_text)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_text__short_rows_equal_full_rows(kind, tiny_cfg):
    model = made(tiny_cfg, kind).eval()
    short = model.tokenizer(TEXTS)
    full = full_length(model, short)
    if not model.is_causal_text:
        assert short.shape == full.shape
        short = short[:, :6]
    else:
        assert short.shape[1] == 6
    with torch.no_grad():
        difference = model.encode_text(short) - model.encode_text(full)
    assert difference.abs().max() < 1e-5


def test_forward__output_has_the_documented_parts(model, batch):
    out = model(batch)
    assert isinstance(out, CLIPOutput)
    assert out.logit_scale.shape == ()
    assert out.logit_scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert torch.allclose(out.image_features.norm(dim=1), torch.ones(3))
    raw = model.encode_image(batch["image"], normalize=False)
    assert torch.allclose(out.image_features * out.aux["image_norm"], raw, atol=1e-6)
    raw = model.encode_text(batch["text"], normalize=False)
    assert torch.allclose(out.text_features * out.aux["text_norm"], raw, atol=1e-6)
    assert "logit_bias" not in out.aux
    assert model.max_log_scale == pytest.approx(math.log(100))


def test_forward__sigmoid_models_have_a_bias_and_no_clamp(tiny_cfg):
    model = made(tiny_cfg, "sigmoid")
    image = torch.randn(2, 3, 32, 32)
    out = model({"image": image, "text": model.tokenizer(TEXTS[:2])})
    assert out.aux["logit_bias"].shape == ()
    assert out.aux["logit_bias"].item() == -10
    assert model.max_log_scale is None


def test_forward__features_are_float32_under_autocast(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(batch)
    assert out.image_features.dtype == out.text_features.dtype == torch.float32
    assert out.logit_scale.dtype == torch.float32
    assert torch.allclose(out.text_features.norm(dim=1), torch.ones(3), atol=1e-6)


LONG = {"dtype": torch.long}


@pytest.mark.parametrize(
    ("call", "given", "error", "match"),
    [
        ("encode_text", ["red"], TypeError, "tokenizer"),
        ("encode_text", torch.zeros(2, 4), TypeError, "float32"),
        ("encode_text", torch.zeros(4, **LONG), ValueError, r"\(4,\)"),
        ("encode_text", torch.zeros(2, 13, **LONG), ValueError, "length=12"),
        ("encode_text", torch.zeros(2, 0, **LONG), ValueError, r"\(2, 0\)"),
        ("encode_image", torch.zeros(3, 32, 32), ValueError, "transform"),
        ("encode_image", torch.zeros(2, 3, 32, 32, **LONG), ValueError, "int64"),
        ("encode_image", torch.rand(2, 3, 40, 40), ValueError, r"40.*3, 32, 32\)"),
        ("encode_image", torch.rand(2, 1, 32, 32), ValueError, r"1, 32.*3, 32, 32\)"),
        ("forward", {"image": torch.zeros(1, 3, 32, 32)}, ValueError, "'text'"),
        ("blocks", "audio", ValueError, "'audio'"),
    ],
)
def test_calls__wrong_input_is_refused(call, given, error, match, model):
    refused(match, getattr(model, call), given, error=error)


def test_features__pair_images_with_their_first_texts(model, batch):
    assert model.features is None
    out = model(batch)
    joint = torch.cat([out.image_features, out.text_features], 1)
    assert torch.equal(model.features, joint)
    owner = torch.tensor([1, 0, 1, 0, 2])
    text = model.tokenizer([*TEXTS, "moon", "house"])
    out = model({**batch, "text": text, "owner": owner})
    expected = torch.cat([out.image_features, out.text_features[[1, 0, 4]]], 1)
    assert torch.equal(model.features, expected)
    out = model({**batch, "text": text})
    assert torch.equal(model.features, out.image_features)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_copies__are_independent_and_have_all_but_features(copied, model, batch):
    out = model(batch)
    twin = copied(model)
    assert twin.features is None and twin.config == model.config
    assert twin.state_fingerprint() == model.state_fingerprint()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(twin(batch).text_features, out.text_features)
    assert twin.tokenizer(TEXTS).equal(model.tokenizer(TEXTS))


# ------------------------------------------------------------------- adapters
class Probe(torch.nn.Module):
    """Adds a learned vector to the second branch of a block."""

    def __init__(self, block):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.randn(block.width))
        self.active = True
        self.seen = None
        block.module.probe = self
        block.norm2.register_forward_pre_hook(self.before)
        block.mlp_out.register_forward_hook(self.after)

    def before(self, module, args):
        self.seen = args[0].shape

    def after(self, module, args, output):
        return output + self.shift if self.active else None


TOWERS = ["native", "timm_vit", "eva", "hf_clip_folder", "hf_siglip_folder"]


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_blocks__hooks_change_features_and_deep_copies_rebind(
    kind, tower, tiny_cfg, request
):
    model = any_model(kind, tiny_cfg, request).train()
    size = model.image_size
    batch = {"image": torch.randn(2, 3, size, size), "text": model.tokenizer(TEXTS[:2])}
    plain = model(batch)
    keys = set(model.state_dict())
    probes = [Probe(block) for block in model.blocks(tower)]
    assert keys < set(model.state_dict())
    assert len(probes) == len(model.blocks(tower))
    shifted = model(batch)
    assert all(probe.seen[0] == 2 and len(probe.seen) == 3 for probe in probes)
    name = f"{tower}_features"
    other = "text_features" if tower == "image" else "image_features"
    assert not torch.allclose(getattr(plain, name), getattr(shifted, name))
    assert torch.equal(getattr(plain, other), getattr(shifted, other))
    twin = copy.deepcopy(model)
    for probe in probes:
        probe.active = False
    assert torch.equal(getattr(model(batch), name), getattr(plain, name))
    assert torch.equal(getattr(twin(batch), name), getattr(shifted, name))


@pytest.mark.parametrize("kind", ["convnet", "resnet"])
def test_blocks__convolutional_towers_name_the_alternative(kind, tiny_cfg):
    model = made(tiny_cfg, kind)
    refused("tiny-emoji-vit", model.blocks, "image")
    assert len(model.blocks("text")) == 2


# ----------------------------------------------------------- fresh parameters
FRESH = ["native", "convnet", "resnet", "sigmoid", "hf_clip_folder"]


@pytest.mark.parametrize("kind", FRESH)
def test_reinitialize__equals_a_new_model_and_keeps_the_global_state(
    kind, tiny_cfg, request
):
    model = any_model(kind, tiny_cfg, request)
    objects = dict(model.named_parameters())
    state = torch.get_rng_state()
    model.reinitialize(11)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p is objects[n] for n, p in model.named_parameters())
    torch.manual_seed(11)
    fresh = create_dual_encoder(json.loads(json.dumps(model.config)))
    assert fresh.pretrained is model.pretrained is None
    assert fresh.state_fingerprint() == model.state_fingerprint()
    model.reinitialize(12)
    assert fresh.state_fingerprint() != model.state_fingerprint()


def test_reinitialize__forgets_the_pretraining(model, tmp_path):
    with torch.no_grad():
        model.clip.logit_scale.fill_(6.0)
    model.save(tmp_path)
    model = create_dual_encoder(model.config, pretrained=tmp_path)
    assert model.pretrained == str(tmp_path)
    assert model.max_log_scale == pytest.approx(6.0)
    model.reinitialize(0)
    assert model.pretrained is None
    assert model.max_log_scale == pytest.approx(math.log(100))


@pytest.mark.parametrize("action", ["reinitialize", "save"])
def test_plain_actions__refuse_adapters(action, model, tmp_path):
    Probe(model.blocks("text")[0])
    with pytest.raises(ValueError, match="probe"):
        getattr(model, action)(0 if action == "reinitialize" else tmp_path)


# --------------------------------------------------------------- MACs, freezing
def test_macs__equal_a_count_by_hand(model):
    def block(tokens, width):
        products = tokens * width * (3 * width + width + 4 * width + 4 * width)
        return products + 2 * tokens * tokens * width

    patches, tokens, width = 16, 17, 32
    image = patches * (3 * 8 * 8) * width + 2 * block(tokens, width) + width * 24
    assert model.macs()["image"] == image
    for length in (12, 5):
        text = 2 * block(length, 32) + 32 * 24
        assert model.macs(length)["text"] == text
    assert model.macs() == model.macs(12)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["native", "hf_clip_folder", "hf_siglip_folder"])
def test_precision__frozen_weights_are_small_and_features_close(
    kind, precision, tiny_cfg, request
):
    source = tiny_cfg if kind == "native" else request.getfixturevalue(kind)
    torch.manual_seed(0)
    exact = create_dual_encoder(source).eval()
    torch.manual_seed(0)
    model = create_dual_encoder(source, precision=precision).eval()
    image, text = torch.randn(3, 3, 32, 32), model.tokenizer(TEXTS)
    assert not any(p.requires_grad for p in model.parameters())
    sizes = {n: p.element_size() for n, p in model.clip.named_parameters()}
    assert all(s == 2 for n, s in sizes.items() if "token_embedding" in n)
    assert model.logit_scale.dtype == torch.float32
    small, large = model.encode_image(image), exact.encode_image(image)
    assert small.dtype == torch.float32
    assert (small * large).sum(1).min() > 0.99
    assert (model.encode_text(text) * exact.encode_text(text)).sum(1).min() > 0.99
    assert model.macs() == exact.macs()


def test_precision__trainable_parameters_must_be_float32(tiny_cfg, batch):
    model = create_dual_encoder(tiny_cfg, precision="bf16")
    model.clip.visual.conv1.weight.requires_grad_(True)
    refused("conv1.*unfreeze", model, batch)
    model.unfreeze("image")
    out = model(batch)
    out.image_features.sum().backward()
    assert model.clip.visual.conv1.weight.grad.dtype == torch.float32
    assert model.clip.token_embedding.weight.dtype == torch.bfloat16
    model.freeze("image")
    assert model.clip.visual.conv1.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("compiled", [False, True])
def test_freeze__batch_norms_of_a_frozen_tower_stand_still(compiled, tiny_cfg):
    model = made(tiny_cfg, "resnet")
    if compiled:
        model.clip = torch.compile(model.clip)
    norm = model.clip.visual.bn1
    assert norm.training
    model.freeze("image")
    assert not norm.training
    model.train()
    before = model.state_fingerprint("image")
    model.encode_image(torch.randn(4, 3, 32, 32))
    assert model.state_fingerprint("image") == before
    assert all(p.requires_grad for p in model.clip.transformer.parameters())
    model.unfreeze("image")
    model.encode_image(torch.randn(4, 3, 32, 32))
    assert model.state_fingerprint("image") != before


def test_constructor__unknown_precision_is_refused(model):
    refused("fp8", DualEncoder, model.clip, model.config, precision="fp8")


# ------------------------------------------------------------------------ compiling
def test_compile__gives_the_same_and_copies_are_their_own(model, batch):
    expected = model(batch)
    model.compile(backend="eager")  # the tracing alone
    names = [name for name, _ in model.named_parameters()]
    torch.testing.assert_close(model(batch).image_features, expected.image_features)
    assert names == [name for name, _ in model.named_parameters()]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        other = twin(batch)
    assert not torch.allclose(other.image_features, expected.image_features)
    torch.testing.assert_close(model(batch).text_features, expected.text_features)
    pickle.loads(pickle.dumps(twin))
