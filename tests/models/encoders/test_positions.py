import open_clip
import pytest
import torch

from avalanche_clip.models import (
    attach_lora,
    attach_token_embedding,
    create_dual_encoder,
    export_model,
    load_tower,
    resize_dual_encoder,
)
from avalanche_clip.models.encoders.positions import resize_grid, stretch
from tests.models.encoders.test_dual_encoder import made
from tests.refused import refused

TEXTS = ["red dog", "green cat bird sun"]


@pytest.fixture
def long_cfg(tiny_cfg):
    """With more positions than stay when texts get longer."""
    tiny_cfg["model_cfg"]["text_cfg"]["context_length"] = 30
    return tiny_cfg


def long_clip(table):
    """The loop of Long-CLIP for a factor of 4, 20 kept."""
    kept, length = 20, len(table)
    new = torch.zeros(4 * length - 3 * kept, table.shape[1])
    new[:kept] = table[:kept]
    for i in range(length - kept):
        here = table[i + kept]
        step = table[i + kept + 1] - here if i + kept + 1 < length else None
        step = here - table[i + kept - 1] if step is None else step
        for part in range(4):
            new[kept + 4 * i + part] = here + part / 4 * step
    return new


def test_stretch__is_long_clips_for_77_to_248():
    table = torch.randn(77, 5)
    torch.testing.assert_close(stretch(table, 248), long_clip(table))
    assert torch.equal(stretch(table, 300)[:20], table[:20])
    assert torch.equal(stretch(table, 9), table[:9])
    assert torch.equal(stretch(table, 77), table)
    refused("at least 22", stretch, table[:21], 30)


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_grid__is_that_of_open_clip_for_squares(tokens):
    table = torch.randn(tokens + 16, 6)
    same = resize_grid(table, (4, 4), (4, 4))
    torch.testing.assert_close(same, table)
    oblong = resize_grid(table[None], (2, 8), (4, 4))
    assert oblong.shape == (1, tokens + 16, 6)
    assert torch.equal(oblong[0, :tokens], table[:tokens])


@pytest.mark.parametrize("kind", ["native", "custom", "resnet", "eos"])
def test_image_size__equals_what_open_clip_makes_of_it(kind, tiny_cfg, tmp_path):
    torch.manual_seed(0)
    model = made(tiny_cfg, kind)
    before = model.state_fingerprint()
    size = 64 if kind == "resnet" else 48
    twin = resize_dual_encoder(model, image_size=size).eval()
    assert model.state_fingerprint() == before
    assert twin.image_size == size
    assert twin.transform(False).preprocessing.size == (size, size)
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = twin.encode_image(image)
        text = model.tokenizer(TEXTS)
        assert torch.equal(twin.encode_text(text), model.eval().encode_text(text))
    if kind != "resnet":  # of which open_clip resizes nothing
        export_model(model, tmp_path / "out")
        name = f"local-dir:{tmp_path / 'out'}"
        clip = open_clip.create_model(name, force_image_size=size).eval()
        with torch.no_grad():
            expected = clip.encode_image(image, normalize=True)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("folder", ["hf_clip_folder", "hf_siglip_folder"])
def test_image_size__of_transformers_models(folder, request):
    model = create_dual_encoder(request.getfixturevalue(folder)).eval()
    refused("oblong", resize_dual_encoder, model, image_size=(32, 48))
    twin = resize_dual_encoder(model, image_size=48)
    with torch.no_grad():
        assert twin.encode_image(torch.randn(2, 3, 48, 48)).shape == (2, twin.embed_dim)
    same = resize_dual_encoder(model, image_size=32)
    assert same.state_fingerprint() == model.state_fingerprint()
    cropped = folder == "hf_clip_folder"  # 40 pixels, of which 32 are cropped
    larger = resize_dual_encoder(model, image_size=64).transform(False).preprocessing
    assert larger.resize_to == (80 if cropped else None)


def test_image_size__of_timm_and_convolutional_towers(tiny_cfg):
    torch.manual_seed(0)
    model = made(tiny_cfg, "timm_vit")
    twin = resize_dual_encoder(model, image_size=96).eval()
    with torch.no_grad():
        assert twin.encode_image(torch.randn(1, 3, 96, 96)).shape == (1, 24)
    tiny = create_dual_encoder("tiny-emoji", "icons").eval()
    larger = resize_dual_encoder(tiny, image_size=64)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(larger.encode_image(image), tiny.encode_image(image))


@pytest.mark.parametrize("custom", [False, True])
def test_context_length__short_captions_keep_their_features(custom, long_cfg, tmp_path):
    long_cfg["model_cfg"]["custom_text"] = custom
    torch.manual_seed(0)
    model = create_dual_encoder(long_cfg).eval()
    twin = resize_dual_encoder(model, context_length=248)
    assert not twin.training
    twin.save(tmp_path / "twin")
    image = torch.randn(1, 3, 32, 32)
    long = "dog " * 200
    for one in (twin, create_dual_encoder(tmp_path / "twin").eval()):
        assert one.context_length == 248
        with torch.no_grad():
            torch.testing.assert_close(
                one.encode_text(one.tokenizer(TEXTS)),
                model.encode_text(model.tokenizer(TEXTS)),
            )
            assert torch.equal(one.encode_image(image), model.encode_image(image))
        assert one.tokenizer([long]).shape == (1, 202)
    cut = resize_dual_encoder(model, context_length=8)
    assert cut.tokenizer([long]).shape == (1, 8)
    with torch.no_grad():
        ids = cut.tokenizer([long])
        torch.testing.assert_close(cut.encode_text(ids), model.encode_text(ids))


def test_context_length__of_a_transformers_model(hf_clip_folder, tmp_path):
    model = create_dual_encoder(hf_clip_folder)
    shorter = resize_dual_encoder(model, context_length=8)
    shorter.save(tmp_path / "twin")
    for one in (shorter, create_dual_encoder(tmp_path / "twin")):
        assert one.tokenizer(["dog " * 30]).shape == (1, 8)
    refused("at least 22", resize_dual_encoder, model, context_length=30)


def test_context_length__grown_tables_and_flags_go_along(native_cfg):
    native_cfg["text_cfg"]["context_length"] = 30
    model = create_dual_encoder(native_cfg)
    table = attach_token_embedding(model)
    model.tokenizer.add_language("de", ["über die Straße"] * 3, vocab_size=600)
    table.expand(model.tokenizer.vocab_size)
    model.freeze("image")
    twin = resize_dual_encoder(model, context_length=60)
    ids = model.tokenizer(["über die Straße"])
    assert torch.equal(twin.tokenizer(["über die Straße"]), ids)
    assert model.tokenizer.context_length == 30
    with torch.no_grad():
        expected = model.encode_text(ids)
        torch.testing.assert_close(twin.encode_text(ids), expected)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in twin.named_parameters()}


def test_create__resizes_on_load(tmp_path):
    whole = create_dual_encoder("tiny-emoji-vit", "icons")
    sizes = {"image_size": (40, 56), "context_length": 40}
    resized = resize_dual_encoder(whole, **sizes).state_dict()
    whole.save(tmp_path)
    for source in (("tiny-emoji-vit", "icons"), (tmp_path,)):
        found = create_dual_encoder(*source, precision="bf16", **sizes)
        assert not any(p.requires_grad for p in found.parameters())
        for name, value in found.state_dict().items():
            assert torch.equal(value, resized[name].to(value.dtype)), name
        images = torch.zeros(1, 3, 40, 56)
        assert found.encode_image(images).shape == (1, whole.embed_dim)
    refused("image_size=0", create_dual_encoder, "tiny-emoji-vit", image_size=0)


def test_resize__refuses_what_it_cannot_do(tiny_cfg, hf_siglip_folder):
    model = create_dual_encoder(tiny_cfg)
    refused("Nothing to resize", resize_dual_encoder, model)
    refused("image_size", resize_dual_encoder, model, image_size=0)
    refused("context_length", resize_dual_encoder, model, context_length=1)
    siglip = create_dual_encoder(hf_siglip_folder)
    refused("end token", resize_dual_encoder, siglip, context_length=248)
    attach_lora(model)
    refused("detach", resize_dual_encoder, model, image_size=64)


# ------------------------------------------------------------------------ one tower
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_load_tower__copies_one_tower_and_what_belongs_to_it(tower, custom, tiny_cfg):
    torch.manual_seed(0)
    pixels = {"mean": [0.1, 0.2, 0.3], "resize_mode": "squash"}
    other = create_dual_encoder({**tiny_cfg, "preprocess_cfg": pixels}).eval()
    tiny_cfg["model_cfg"]["custom_text"] = custom
    model = create_dual_encoder(tiny_cfg).eval()
    rest = "text" if tower == "image" else "image"
    kept, scale = model.state_fingerprint(rest), model.logit_scale.clone()
    mean = model.transform(False).preprocessing.mean
    assert load_tower(model, tower, other) is model
    assert model.state_fingerprint(rest) == kept
    assert torch.equal(model.logit_scale, scale)
    image, text = torch.randn(2, 3, 32, 32), other.tokenizer(TEXTS)
    with torch.no_grad():
        for one, encode, given in (
            ("image", "encode_image", image),
            ("text", "encode_text", text),
        ):
            same = torch.equal(
                getattr(model, encode)(given), getattr(other, encode)(given)
            )
            assert same == (one == tower)
    taken = other.transform(False).preprocessing.mean if tower == "image" else mean
    assert model.transform(False).preprocessing.mean == taken


def test_load_tower__takes_the_other_tower_as_it_is(tiny_cfg):
    other = create_dual_encoder(tiny_cfg)
    tiny_cfg["model_cfg"]["text_cfg"]["layers"] = 1
    model = create_dual_encoder(tiny_cfg)
    load_tower(model, "image", other)
    refused("layers", load_tower, model, "text", other)
    refused("tower", load_tower, model, "both", other)
    attach_lora(model)
    refused("detach", load_tower, model, "image", other)
