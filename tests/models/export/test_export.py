import warnings

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

from avalanche_clip.models import (
    attach_adapters,
    attach_lora,
    attach_moe_adapters,
    attach_prompts,
    attach_token_embedding,
    create_dual_encoder,
    export_model,
)
from avalanche_clip.models.export.card import model_card
from tests.models.conftest import edited, hf_text
from tests.models.encoders.test_dual_encoder import made
from tests.models.kinds import convolutional, hf_clip, hf_siglip
from tests.models.text.test_hf_tokenizers import SIGLIP, save_pieces
from tests.refused import refused

TEXTS = ["red dog", "a photo of a Blue cat.", "w1 w2 w3", "moon " * 40]


def built(kind, cfg, request):
    torch.manual_seed(0)
    if kind == "convolutional":
        return convolutional(cfg)
    if kind == "hf_clip_32":  # resized to the size of the input
        folder = request.getfixturevalue("hf_clip_folder")
        with edited(folder / "preprocessor_config.json") as stored:
            stored["size"] = {"shortest_edge": 32}
        return create_dual_encoder(folder)
    if kind.startswith("hf"):
        return {"hf_clip": hf_clip, "hf_siglip": hf_siglip}[kind](cfg, request)
    return made(cfg, kind)


def pictures(model):
    height, width = model.transform(False).preprocessing.size
    draw = np.random.default_rng(1).integers
    for h, w in ((height, width), (height + 8, width), (2 * height, 3 * width)):
        yield Image.fromarray(draw(0, 256, (h, w, 3), dtype=np.uint8))


def unit(features):
    return torch.nn.functional.normalize(features, dim=1)


class OpenCLIP:
    """A folder as open_clip loads it."""

    def __init__(self, folder):
        name = f"local-dir:{folder}"
        self.clip, self.pixels = open_clip.create_model_from_pretrained(name)
        self.clip.eval()
        self.ids = open_clip.get_tokenizer(name)

    def image(self, image):
        return self.clip.encode_image(image, normalize=True)

    def text(self, ids):
        return self.clip.encode_text(ids, normalize=True)


class Transformers:
    """A folder as transformers loads it."""

    def __init__(self, folder, kind="CLIP"):
        model, processor = (
            getattr(transformers, f"{kind}{what}") for what in ("Model", "Processor")
        )
        self.clip = model.from_pretrained(folder).eval()
        self.processor = processor.from_pretrained(folder)
        automatic = transformers.AutoImageProcessor
        self.exact = automatic.from_pretrained(folder, backend="pil")

    def pixels(self, picture):
        return self.exact(picture, return_tensors="pt").pixel_values[0]

    def ids(self, texts):
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.processor(text=texts, **options).input_ids

    def image(self, image):
        return unit(self.clip.get_image_features(pixel_values=image).pooler_output)

    def text(self, ids):
        return unit(self.clip.get_text_features(input_ids=ids).pooler_output)


def to_the_end(row, end):
    found = (row == end).nonzero()
    return row[: int(found[0]) + 1] if len(found) else row


@torch.no_grad()
def check_same(model, other, texts=TEXTS, same_padding=True):
    """Features, ids, pixels and scale are those of the model."""
    model.eval()
    image = torch.randn(3, 3, *model.transform(False).preprocessing.size)
    torch.testing.assert_close(
        other.image(image), model.encode_image(image), rtol=0, atol=1e-5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = model.tokenizer(texts)
    theirs = other.ids(texts)
    assert theirs.shape == (len(texts), model.context_length)
    for row, found in zip(ours, theirs, strict=True):
        end = model.tokenizer.eot_id
        assert torch.equal(to_the_end(row, end), to_the_end(found, end))
        if same_padding:
            assert torch.equal(row, found[: len(row)])
            assert (found[len(row) :] == model.tokenizer.pad_id).all()
    torch.testing.assert_close(
        other.text(theirs), model.encode_text(ours), rtol=0, atol=1e-5
    )
    for picture in pictures(model):
        expected = model.transform(False)(picture)
        if isinstance(other, Transformers):  # its faster way may miss by a grey level
            fast = other.processor(images=picture, return_tensors="pt").pixel_values[0]
            level = 1.01 / 255 / min(model.transform(False).preprocessing.std)
            torch.testing.assert_close(fast, expected, rtol=0, atol=level)
        torch.testing.assert_close(other.pixels(picture), expected, rtol=0, atol=1e-6)
    scale = model.logit_scale.reshape(())
    torch.testing.assert_close(other.clip.logit_scale.detach().reshape(()), scale)
    if model.logit_bias is not None:
        bias = other.clip.logit_bias.detach().reshape(())
        torch.testing.assert_close(bias, model.logit_bias.reshape(()))


OPEN = ("native", "custom", "quick", "eos", "sigmoid", "resnet", "coca")


@pytest.mark.parametrize("kind", [*OPEN, "convolutional", "hf_clip_32"])
def test_open_clip__loads_the_same_model(kind, tiny_cfg, request, tmp_path):
    model = built(kind, tiny_cfg, request)
    before, modes = model.state_fingerprint(), [m.training for m in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert export_model(model, tmp_path / "new" / "out") == tmp_path / "new" / "out"
    assert torch.rand(1) == expected
    assert modes == [m.training for m in model.modules()]
    assert model.state_fingerprint() == before
    check_same(model, OpenCLIP(tmp_path / "new" / "out"))
    again = create_dual_encoder(tmp_path / "new" / "out")
    check_same(again, OpenCLIP(tmp_path / "new" / "out"))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]
    export_model(again, tmp_path / "again")
    check_same(model, OpenCLIP(tmp_path / "again"))


@pytest.mark.parametrize("kind", ["native", "custom", "quick", "eos", "hf_clip"])
def test_transformers__loads_the_same_model(kind, tiny_cfg, request, tmp_path):
    model = built(kind, tiny_cfg, request)
    before = model.state_fingerprint()
    export_model(model, tmp_path / "out", "transformers")
    assert model.state_fingerprint() == before
    check_same(model, Transformers(tmp_path / "out"), same_padding=kind == "hf_clip")
    again = create_dual_encoder(tmp_path / "out")
    check_same(again, Transformers(tmp_path / "out"))


def test_transformers__siglip_stays_siglip(tiny_cfg, request, tmp_path):
    model = built("hf_siglip", tiny_cfg, request)
    export_model(model, tmp_path / "out", "transformers")
    check_same(model, Transformers(tmp_path / "out", "Siglip"))
    refused("siglip.*Possible: 'transformers'", export_model, model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_transformers__siglip_cleans_captions_as_before(hf_siglip_folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hf_siglip_folder / name).unlink()
    inner = save_pieces(hf_siglip_folder, **SIGLIP)
    with edited(hf_siglip_folder / "config.json") as stored:
        stored["text_config"]["vocab_size"] = inner.get_vocab_size()
    (hf_siglip_folder / "model.safetensors").unlink()
    config = create_dual_encoder({"model_type": "siglip"} | stored).config
    spec = {"type": "hf", "file": str(hf_siglip_folder)}
    model = create_dual_encoder({**config, "tokenizer": spec})
    texts = ["A  Red, dog!", "it's a (red) dog"]
    assert torch.equal(model.tokenizer(texts[:1]), model.tokenizer(["a red dog"]))
    export_model(model, tmp_path / "out", "transformers")
    check_same(model, Transformers(tmp_path / "out", "Siglip"), texts)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("convolutional", "timm_model_name"),
        ("resnet", "convolutional"),
        ("sigmoid", "init_logit_bias|no_causal_mask"),
        ("coca", "multimodal_cfg"),
    ],
)
def test_transformers__refuses_what_it_does_not_have(
    kind, words, tiny_cfg, request, tmp_path
):
    model, out = built(kind, tiny_cfg, request), tmp_path / "out"
    words = f"({words}).*Possible: 'open_clip'"
    refused(words, export_model, model, out, "transformers")
    assert list(tmp_path.glob("out*")) == []


def test_open_clips_own_tokenizer__goes_to_both(native_cfg, tmp_path):
    model = create_dual_encoder(native_cfg)
    texts = ["a photo of a cat.", "It's  HERE, café 12!", "x " * 40, ""]
    export_model(model, tmp_path / "a")
    assert not (tmp_path / "a" / "tokenizer.json").exists()
    check_same(model, OpenCLIP(tmp_path / "a"), texts)
    export_model(model, tmp_path / "b", "transformers")
    check_same(model, Transformers(tmp_path / "b"), texts, same_padding=False)


@pytest.mark.parametrize("form", ["open_clip", "transformers"])
def test_grown_vocabulary__goes_with_its_tokenizer(form, tmp_path):
    config = create_dual_encoder("tiny-emoji-vit").config
    config["preprocess_cfg"]["trim"] = False
    torch.manual_seed(0)
    model = create_dual_encoder(config)
    end = model.tokenizer.eot_id
    table = attach_token_embedding(model)
    captions = ["ein roter Hund läuft über die Straße", "ein grünes Haus", "der Mond"]
    grown = model.tokenizer.add_language("de", captions * 3, vocab_size=600)
    table.expand(model.tokenizer.vocab_size)
    torch.nn.init.normal_(table.weight[end + 1 :])
    ids = model.tokenizer(captions)
    assert grown.num_new_tokens > 5
    assert (ids > end).any(1).sum() == 2
    export_model(model, tmp_path / "out", form)
    other = {"open_clip": OpenCLIP, "transformers": Transformers}[form]
    texts = [*captions, "a red heart"]
    check_same(model, other(tmp_path / "out"), texts, same_padding=form == "open_clip")
    again = create_dual_encoder(tmp_path / "out")
    with torch.no_grad():
        found = again.eval().encode_text(again.tokenizer(texts))
        expected = model.encode_text(model.tokenizer(texts))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_grown_vocabulary__one_per_language_is_refused(native_cfg, tmp_path):
    model = create_dual_encoder(native_cfg)
    table = attach_token_embedding(model, scope="language")
    model.tokenizer.add_language("en")
    model.tokenizer.add_language("de", ["über die Straße"] * 3, vocab_size=600)
    table.expand(model.tokenizer.vocab_size)
    refused("scope='language'", export_model, model, tmp_path / "out")
    table.activate(torch.tensor([3]))
    refused("being trained", export_model, model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_lora__is_merged_and_stays_with_the_model(tiny_cfg, tmp_path):
    torch.manual_seed(0)
    model = create_dual_encoder(tiny_cfg)
    lora = attach_lora(model, targets=("qkv", "out", "mlp"))
    for _, parameter in lora.trainable_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export_model(model, tmp_path / "a")
    export_model(model, tmp_path / "b", "transformers")
    assert model.lora is lora
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    check_same(model, OpenCLIP(tmp_path / "a"))
    check_same(model, Transformers(tmp_path / "b"), same_padding=False)
    lora.add()
    lora.set_ids(torch.tensor([0, 1]))
    refused("ids", export_model, model, tmp_path / "c")


@pytest.mark.parametrize(
    "attach", [attach_adapters, attach_prompts, attach_moe_adapters]
)
def test_other_branches__are_refused(attach, tiny_cfg, tmp_path):
    model = create_dual_encoder(tiny_cfg)
    attach(model)
    for form in ("open_clip", "transformers"):
        refused("cannot be merged|merge", export_model, model, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_weights_in_16_bits__are_written_in_32(tiny_cfg, tmp_path):
    torch.manual_seed(0)
    full = create_dual_encoder(tiny_cfg)
    torch.manual_seed(0)
    model = create_dual_encoder(tiny_cfg, precision="bf16")
    export_model(model, tmp_path / "out")
    assert model.precision == "bf16"
    assert model.clip.visual.conv1.weight.dtype == torch.bfloat16
    for parameter, stored in zip(full.parameters(), model.parameters(), strict=True):
        parameter.data = stored.data.float()
    check_same(full, OpenCLIP(tmp_path / "out"))


@pytest.mark.parametrize("form", ["open_clip", "transformers"])
@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({"resize_mode": "squash", "interpolation": "bilinear"}, "both"),
        ({"mean": 0.3, "std": [0.2, 0.3, 0.4]}, "both"),
        ({"resize_mode": "longest", "fill_color": 70}, "open_clip"),
        ({"resize_to": 40}, "transformers"),
        ({"exif_rotation": True}, "none"),
    ],
)
def test_preprocessing__goes_along_or_is_refused(
    settings, possible, form, tiny_cfg, tmp_path
):
    model = create_dual_encoder({**tiny_cfg, "preprocess_cfg": settings})
    if possible not in (form, "both"):
        words = f"Possible: ('{possible}'|{possible})"
        refused(words, export_model, model, tmp_path / "out", form)
        assert list(tmp_path.iterdir()) == []
        return
    export_model(model, tmp_path / "out", form)
    other = {"open_clip": OpenCLIP, "transformers": Transformers}[form]
    check_same(model, other(tmp_path / "out"), same_padding=form == "open_clip")


@pytest.mark.parametrize("name", ["tiny-emoji", "tiny-emoji-vit"])
def test_presets__say_that_drawings_are_zoomed(name, tmp_path):
    model = create_dual_encoder(name, pretrained="emoji-2010").eval()
    with pytest.warns(UserWarning, match="trim"):
        export_model(model, tmp_path / "out", data="my icons", license="mit")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("emoji-2010", "Apache-2.0", "my icons", "license: mit", "place("):
        assert words in card
    other = OpenCLIP(tmp_path / "out")
    texts = ["a red heart", "grinning face!", "flag: Japan"]
    ids = model.tokenizer(texts)
    assert torch.equal(other.ids(texts)[:, : ids.shape[1]], ids)
    for picture in pictures(model):
        pixels = model.transform(False)(picture)
        place = model.transform(False).place(picture)
        torch.testing.assert_close(other.pixels(place), pixels, rtol=0, atol=1e-6)
        with torch.no_grad():
            found = other.image(pixels[None])
            expected = model.encode_image(pixels[None])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_folder__only_an_earlier_export_is_replaced(tiny_cfg, tmp_path):
    model = create_dual_encoder(tiny_cfg)
    out = tmp_path / "out"
    out.mkdir()
    export_model(model, out)
    (out / "stale.json").write_text("{}")
    export_model(model, out, "transformers")
    assert not (out / "stale.json").exists()
    assert not (out / "open_clip_config.json").exists()
    (out / "README.md").write_text("mine")
    refused("no earlier export", export_model, model, out)
    assert (out / "README.md").read_text() == "mine"
    refused("open_clip.*transformers", export_model, model, tmp_path / "new", "onnx")
    refused("DualEncoder", export_model, model.clip, tmp_path / "new", error=TypeError)
    assert not (tmp_path / "new").exists()


def test_card__names_no_folder_of_this_machine(trained, tmp_path):
    trained.save(tmp_path / "secret" / "mine")
    model = create_dual_encoder(tmp_path / "secret" / "mine")
    export_model(model, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert b"secret" not in path.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("`mine`", "not stated", "local-dir:", "12 tokens"):
        assert words in card


@pytest.mark.parametrize("license", ["cc-by-4.0", "CC BY: see #1\nof LICENSE", None])
def test_card__begins_with_valid_yaml(license, tiny_cfg):
    yaml = pytest.importorskip("yaml")
    model = create_dual_encoder(tiny_cfg)
    head = model_card(model, "open_clip", [], None, license).split("---\n")[1]
    assert yaml.safe_load(head)["license"] == (license or "unknown")


def test_text_tower_of_a_folder__is_refused(text_tower, native_cfg, tmp_path):
    model = create_dual_encoder(hf_text(native_cfg, text_tower))
    refused("would not go along.*none", export_model, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
