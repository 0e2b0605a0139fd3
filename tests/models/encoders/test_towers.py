"""Parameters belong to their tower, whatever was put around the model."""

import copy

import pytest
import torch
from torch import nn

from avalanche_clip.models import create_dual_encoder, save_weights
from avalanche_clip.models.encoders.towers import inner_path
from tests.models.conftest import edited
from tests.refused import refused


class Forwarding(nn.Module):
    """A wrapper that passes unknown attributes on, as peft's do."""

    inner = "model"

    def __init__(self, module):
        super().__init__()
        setattr(self, self.inner, module)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules[self.inner], name)

    def forward(self, *args, **kwargs):
        return self._modules[self.inner](*args, **kwargs)


class Peft(Forwarding):
    inner = "base_model"


class LowRank(nn.Module):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Parameter(torch.randn(2, base.in_features) / 10)
        self.lora_B = nn.Parameter(torch.randn(base.out_features, 2) / 10)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + x @ self.lora_A.T @ self.lora_B.T


def as_compiled(clip):
    return torch.compile(clip)


def as_peft(clip):
    for parameter in clip.parameters():
        parameter.requires_grad_(False)
    for module in list(clip.modules()):
        for name, child in list(module.named_children()):
            if name in ("c_fc", "fc1"):
                setattr(module, name, LowRank(child))
    return Peft(Forwarding(clip))


def as_compiled_peft(clip):
    return torch.compile(as_peft(clip))


WRAPS = [as_compiled, as_peft, as_compiled_peft]


@pytest.fixture(params=["tiny-emoji-vit", "hf_clip_folder", "hf_siglip_folder"])
def model(request):
    name = request.param
    if name.startswith("hf"):
        name = request.getfixturevalue(name)
    return create_dual_encoder(name).eval()


def expected_tower(name):
    if any(part in name for part in ("visual.", "vision_model.", "visual_projection.")):
        return "image"
    return None if "logit_" in name else "text"


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrapped_model__towers_are_told_apart(wrap, model):
    before = {k: model.state_fingerprint(k) for k in ("image", "text", None)}
    model.clip = wrap(model.clip)
    towers = {name: model.tower_of(name) for name in model.state_dict()}
    assert towers == {name: expected_tower(name) for name in towers}
    assert {"image", "text"} <= set(towers.values())
    after = {k: model.state_fingerprint(k) for k in before}
    assert (before == after) is (wrap is as_compiled)


@pytest.mark.parametrize("wrap", WRAPS[:2])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_wrapped_model__fingerprints_see_one_tower(wrap, tower, model):
    other = {"image": "text", "text": "image"}[tower]
    model.clip = wrap(model.clip)
    before = {k: model.state_fingerprint(k) for k in ("image", "text", None)}
    chosen = [n for n, _ in model.named_parameters() if expected_tower(n) == tower]
    for name in (chosen[0], chosen[-1], *[n for n in chosen if "lora" in n][:1]):
        with torch.no_grad():
            model.get_parameter(name).add_(0.01)
        after = {k: model.state_fingerprint(k) for k in before}
        assert after[tower] != before[tower] and after[None] != before[None]
        assert after[other] == before[other]
        before = after


@pytest.mark.parametrize("wrap", WRAPS[:2])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_wrapped_model__one_tower_is_frozen_and_stays(wrap, tower, model):
    model.clip = wrap(model.clip)
    model.unfreeze()
    model.freeze(tower)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    wanted = {n for n, _ in model.named_parameters() if expected_tower(n) != tower}
    assert trained == wanted
    size = model.image_size
    image = torch.randn(2, 3, size, size)
    text = model.tokenizer(["red dog", "green cat bird"])
    out = model({"image": image, "text": text})
    (out.image_features * out.text_features).sum().backward()
    for name, parameter in model.named_parameters():
        if expected_tower(name) == tower:
            assert parameter.grad is None
    twin = copy.deepcopy(model)
    assert twin.state_fingerprint(tower) == model.state_fingerprint(tower)


def test_something_else__is_refused_in_words():
    model = create_dual_encoder("tiny-emoji-vit")
    assert inner_path(model.clip, "visual") == ""
    model.clip = nn.Linear(2, 2)
    refused("Linear without an image tower", model.tower_of, "clip.weight")
    refused("Linear", model.freeze, "image")


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.to(torch.ones(1).half()),
        lambda m: m.type(torch.bfloat16),
        lambda m: nn.ModuleList([m]).half(),
    ],
)
def test_conversion__to_16_bits_names_precision(convert):
    model = create_dual_encoder("tiny-emoji")
    refused(r"precision='(fp|bf)16'", convert, model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model.to("cpu").float()


def test_clip__takes_features_where_its_configuration_says(hf_clip_folder):
    """The configured end token may be another than the tokenizer's."""
    from transformers import CLIPModel

    with edited(hf_clip_folder / "config.json") as stored:
        stored["text_config"]["eos_token_id"] = 5
    model = create_dual_encoder(hf_clip_folder).eval()
    theirs = CLIPModel.from_pretrained(hf_clip_folder).eval()
    text = torch.tensor([[38, 4, 5, 6, 39, 39], [38, 5, 7, 8, 9, 39]])
    with torch.no_grad():
        expected = theirs.get_text_features(input_ids=text).pooler_output
        found = model.encode_text(text, normalize=False)
        assert torch.allclose(found, expected, atol=1e-6)
        # rows without it are taken at the end
        text[0, 2] = 7
        ends = model.encode_text(text[:1, :5], normalize=False)
        assert not torch.allclose(ends, expected[:1], atol=1e-3)


@pytest.mark.parametrize("part", ["clip", "visual", "block"])
def test_compiled__models_are_saved_and_hashed_as_they_were(part, tiny_cfg, tmp_path):
    model = create_dual_encoder(tiny_cfg)
    before = [model.state_fingerprint(tower) for tower in ("image", "text", None)]
    if part == "clip":
        model.clip = torch.compile(model.clip)
    elif part == "visual":
        model.clip.visual = torch.compile(model.clip.visual)
    else:
        blocks = model.clip.transformer.resblocks
        blocks[0] = torch.compile(blocks[0])
    after = [model.state_fingerprint(tower) for tower in ("image", "text", None)]
    assert after == before
    model.save(tmp_path)
    loaded = create_dual_encoder(tmp_path)
    assert loaded.state_fingerprint() == before[2]
    model.clip = as_peft(model.clip)
    refused("not written", save_weights, model, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()
