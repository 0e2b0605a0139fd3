"""Frozen features of the selector: which they are, and that they stay so."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import alexnet

from avalanche_clip.models import (
    attach_adapters,
    attach_lora,
    attach_moe_adapters,
    attach_prompts,
    create_dual_encoder,
)
from avalanche_clip.models.selector.alexnet import NORMALIZATIONS, AlexNetFeatures
from avalanche_clip.models.selector.features import ModelFeatures, check_same_extractor
from tests.models.experts import OPTIONS, randomise
from tests.models.kinds import hf_clip, hf_siglip, native
from tests.models.selectors import write_alexnet
from tests.refused import refused


def images(model, count=3, seed=0):
    size = model.image_size
    side = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *side, generator=generator)


@pytest.fixture
def conv():
    torch.manual_seed(0)
    return create_dual_encoder("tiny-emoji").eval()


def block_output(model, x):
    """Output of the first block, read by a plain hook."""
    seen = []
    block = model.blocks("image")[0].module
    handle = block.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        model.encode_image(x)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def one_block(cfg, request):
    cfg["model_cfg"]["vision_cfg"]["layers"] = 1
    return create_dual_encoder(cfg)


@pytest.mark.parametrize("kind", [native, one_block, hf_clip, hf_siglip])
def test_transformer__mean_token_after_first_block(kind, tiny_cfg, request):
    torch.manual_seed(0)
    model = kind(tiny_cfg, request).eval()
    x = images(model)
    assert torch.equal(ModelFeatures(model)(x), block_output(model, x).mean(1))


def test_convolutional__grid_over_the_stem(conv):
    x = images(conv)
    stem = conv.clip.visual.trunk.stem(x).detach()  # (3, 32, 12, 12)
    expected = stem.view(3, 32, 4, 3, 4, 3).mean((3, 5)).flatten(1)
    features = ModelFeatures(conv)
    torch.testing.assert_close(features(x), expected)
    assert features.feature_size == 512
    torch.testing.assert_close(ModelFeatures(conv, "mean")(x), stem.mean((2, 3)))


def test_pooling_none__keeps_every_token_and_place(one, conv):
    x = images(one)
    features = ModelFeatures(one, "none")
    expected = block_output(one, x)  # (3, L, 32)
    assert torch.equal(features(x).view_as(expected), expected)
    assert features.feature_size == expected[0].numel()
    x = images(conv)
    stem = conv.clip.visual.trunk.stem(x).detach()  # (3, 32, 12, 12)
    places = ModelFeatures(conv, "none")
    torch.testing.assert_close(places(x).view(3, 12, 12, 32), stem.permute(0, 2, 3, 1))
    refused("240 tokens instead of 144.*48 x 48", places, torch.zeros(1, 3, 80, 48))


@pytest.mark.parametrize(
    "vision",
    [
        {"timm_model_name": "test_vit2", "image_size": 64},
        {"timm_model_name": "test_efficientnet", "image_size": 64},
        {"timm_model_name": "resnet10t", "image_size": 64},
        {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "head_width": 16},
    ],
)
def test_other_towers__early_layers_alone_are_enough(tiny_cfg, vision):
    if "timm_model_name" in vision:
        vision = {**vision, "timm_pool": "avg", "timm_proj": "linear"}
    tiny_cfg["model_cfg"]["vision_cfg"] = vision
    model = create_dual_encoder(tiny_cfg).eval()
    x = images(model)
    features = ModelFeatures(model)
    stage, later = model._towers.early_stage(model.clip)
    seen = []
    hook = stage.register_forward_pre_hook if stage in later else None
    (hook or stage.register_forward_hook)(lambda m, *io: seen.append(io[-1]))
    with torch.no_grad():
        model.encode_image(x)
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert torch.equal(features._pool(hidden), features(x))


def test_copy__does_not_run_or_hold_later_blocks(one):
    features = ModelFeatures(one)
    blocks = [v.module for v in one.blocks("image")]
    later = sum(p.numel() for b in blocks[1:] for p in b.parameters())
    whole = sum(p.numel() for p in one.clip.visual.parameters())
    assert sum(p.numel() for p in features.parameters()) == whole - later
    assert not any(p.requires_grad for p in features.parameters())
    kept = features(images(one))
    for block in blocks[1:]:
        block.forward = None  # would raise if it ran
    assert torch.equal(features(images(one)), kept)


@pytest.mark.parametrize("frozen", [False, True])
def test_features__do_not_follow_the_model(one, frozen):
    if frozen:
        one.freeze()
    x = images(one)
    features = ModelFeatures(one)
    assert features.was_trainable is not frozen
    before = features(x)
    with torch.no_grad():
        one.clip.visual.conv1.weight.mul_(1.5)
    assert not torch.equal(block_output(one, x).mean(1), before)
    assert torch.equal(features(x), before)


def test_batch_norm_stem__training_mode_changes_nothing(tiny_cfg):
    tiny_cfg["model_cfg"]["vision_cfg"] = {
        "layers": [1, 1, 1, 1],
        "width": 16,
        "image_size": 64,
    }
    model = create_dual_encoder(tiny_cfg).eval()
    x = images(model)
    features = ModelFeatures(model)
    before = features(x)
    model.train()
    features.train()
    state = copy.deepcopy(model.state_dict())
    assert torch.equal(features(x), before)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    model.encode_image(x)  # moves the running statistics
    assert torch.equal(features(x), before)


BRANCHES = [attach_lora, attach_adapters, attach_prompts]


@pytest.mark.parametrize("attach", [*BRANCHES, partial(attach_moe_adapters, **OPTIONS)])
def test_branches__are_left_out_with_their_weights(one, attach):
    x = images(one)
    plain = ModelFeatures(one)
    expected, bare = plain(x), one.encode_image(x)
    randomise(attach(one), std=1.0)
    with_branches = one.encode_image(x)
    assert not torch.allclose(with_branches, bare, atol=1e-3)
    assert not torch.allclose(block_output(one, x).mean(1), expected, atol=1e-3)
    late = ModelFeatures(one)
    assert torch.equal(late(x), expected)
    assert torch.equal(one.encode_image(x), with_branches)
    counts = [sum(p.numel() for p in f.parameters()) for f in (plain, late)]
    assert counts[0] == counts[1]


def test_features__leave_no_hook_and_follow_none(one):
    x = images(one)
    features = ModelFeatures(one)
    expected = features(x)
    one.blocks("image")[0].norm1.register_forward_hook(lambda m, a, out: out * 2)
    assert torch.equal(ModelFeatures(one)(x), expected)
    kept = [len(m._forward_hooks) for m in features.modules()]
    refused("30, 32", features, torch.zeros(1, 3, 30, 32))
    assert kept == [0] * len(kept)


def test_precision__sixteen_bits_and_autocast_stay_close(tiny_cfg):
    torch.manual_seed(0)
    plain = create_dual_encoder(tiny_cfg).eval()
    half = create_dual_encoder(tiny_cfg, precision="bf16").eval()
    half.clip.load_state_dict(plain.clip.state_dict())
    x = images(plain)
    full, rounded = ModelFeatures(plain), ModelFeatures(half)
    torch.testing.assert_close(rounded(x), full(x), rtol=0.05, atol=0.01)
    assert rounded(x).dtype is torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full(x), ModelFeatures(plain)(x))


def test_pickle__works_on_its_own(one):
    features, x = ModelFeatures(one), images(one)
    assert torch.equal(pickle.loads(pickle.dumps(features))(x), features(x))


def test_errors__say_what_is_wrong(one, conv):
    refused("pooling='grid'", ModelFeatures, one, "grid")
    refused("Linear", ModelFeatures, nn.Linear(2, 2), error=TypeError)
    other = ModelFeatures(conv)(torch.zeros(1, 3, 80, 64))
    assert other.shape == (1, 512)


# AlexNet ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    return write_alexnet(tmp_path_factory.mktemp("alexnet"))


def test_alexnet__last_convolution_before_its_relu(alexnet_file):
    with torch.device("meta"):
        network = alexnet(weights=None).eval()
    state = torch.load(alexnet_file)
    network.features.load_state_dict(
        {k[9:]: v for k, v in state.items() if k.startswith("features.")},
        assign=True,
    )
    x = torch.randn(2, 3, 224, 224)
    seen = []
    network.features[10].register_forward_hook(lambda m, a, o: seen.append(o.clone()))
    network.features(x)
    features = AlexNetFeatures(alexnet_file)
    out = features(x)
    assert out.shape == (2, 43264)
    assert features.feature_size == 43264
    assert torch.equal(out.view(2, 256, 13, 13), seen[0])
    assert (out < 0).any()


def test_alexnet__safetensors_and_random_numbers(alexnet_file, tmp_path):
    from safetensors.torch import save_file

    save_file(torch.load(alexnet_file), tmp_path / "a.safetensors")
    state = torch.get_rng_state()
    features = AlexNetFeatures(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(features(x), AlexNetFeatures(alexnet_file)(x))
    features.eval()
    assert features.train() is features
    assert not features.training


def test_alexnet__normalisation_and_size(alexnet_file):
    torch.manual_seed(0)
    pixels, close = torch.rand(1, 3, 224, 224), {"rtol": 1e-4, "atol": 1e-4}
    given = {}
    for name, stats in NORMALIZATIONS.items():
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in stats)
        given[name] = (pixels - mean) / std
    plain = AlexNetFeatures(alexnet_file)
    proper = AlexNetFeatures(alexnet_file, normalization="imagenet")
    expected = plain(given["imagenet"])
    torch.testing.assert_close(proper(given["clip"]), expected, **close)
    expected = plain(given["clip"])
    plain.set_input_statistics([0.5] * 3, [0.5] * 3)  # of another model
    torch.testing.assert_close(plain((pixels - 0.5) / 0.5), expected, **close)
    assert plain(torch.rand(2, 3, 48, 48)).shape == (2, 43264)
    small = AlexNetFeatures(alexnet_file, image_size=64)
    assert small.feature_size == 256 * 3 * 3
    assert small(torch.rand(1, 3, 64, 64)).shape == (1, 2304)


def test_alexnet__without_weights_or_with_others_raises(alexnet_file, tmp_path):
    refused("local state dictionary", AlexNetFeatures, None)
    refused(r"nowhere\.pth", AlexNetFeatures, tmp_path / "nowhere.pth")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "b.pth")
    refused("AlexNet's tensors", AlexNetFeatures, tmp_path / "b.pth")
    refused("normalization='none'", AlexNetFeatures, alexnet_file, normalization="none")
    refused("image_size=48", AlexNetFeatures, alexnet_file, image_size=48)


def test_same_extractor__other_weights_and_settings_are_refused(alexnet_file, tmp_path):
    first = AlexNetFeatures(alexnet_file)
    settings = {"feature_size": 43264, **first.settings()}
    std = torch.ones(1)
    check_same_extractor(first, settings, first.probe(), std)
    state = {k: v * 1.1 for k, v in torch.load(alexnet_file).items()}
    torch.save(state, tmp_path / "c.pth")
    other = AlexNetFeatures(tmp_path / "c.pth")
    refused("other weights", check_same_extractor, other, settings, first.probe(), std)
    other = AlexNetFeatures(alexnet_file, normalization="imagenet")
    refused("imagenet", check_same_extractor, other, settings, first.probe(), std)
