import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.models import attach_lora, create_dual_encoder
from avalanche_clip.models.encoders import use
from tests.models.kinds import convolutional, custom_text, hf_clip, hf_siglip, native
from tests.refused import refused

NAMES = ["red dog", "blue", "green cat bird sun"]
TEMPLATES = ["a photo of a {}.", "moon {}"]
KINDS = [native, custom_text, convolutional, hf_clip, hf_siglip]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request, tiny_cfg):
    torch.manual_seed(0)
    kind = request.param
    arguments = [tiny_cfg] if kind is convolutional else [tiny_cfg, request]
    return kind(*arguments)


@pytest.fixture
def pictures():
    draw = np.random.default_rng(0).integers
    return [
        Image.fromarray(draw(0, 256, size=(h, w, 3), dtype=np.uint8))
        for h, w in ((40, 40), (32, 50), (61, 33), (32, 32), (47, 35))
    ]


def by_hand(model, images, names, templates):
    """One image, one class and one prompt at a time."""
    model.eval()
    rows = []
    with torch.no_grad():
        for image in images:
            feature = model.encode_image(image[None], normalize=False)[0].double()
            feature = feature / feature.norm()
            scores = []
            for name in names:
                mean = torch.zeros_like(feature)
                for template in templates:
                    ids = model.tokenizer([template.replace("{}", name)])
                    text = model.encode_text(ids, normalize=False)[0].double()
                    mean += text / text.norm() / len(templates)
                scores.append(feature @ (mean / mean.norm()))
            scale = model.logit_scale.double().exp().item()
            rows.append((scale * torch.stack(scores)).softmax(0))
    return torch.stack(rows).float()


@pytest.mark.parametrize("templates", [None, TEMPLATES])
def test_classify__equals_the_definition(model, pictures, templates):
    images = torch.stack([model.transform(False)(p) for p in pictures])
    before, modes = model.state_fingerprint(), [m.training for m in model.modules()]
    assert any(modes)
    found = model.classify(images, NAMES, templates)
    assert modes == [m.training for m in model.modules()]
    assert model.state_fingerprint() == before
    assert (found.shape, found.dtype) == ((5, 3), torch.float32)
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(1), torch.ones(5))
    expected = by_hand(model, images, NAMES, templates or TEMPLATES[:1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_classify__does_not_depend_on_batches_or_order(model, pictures, monkeypatch):
    whole = model.classify(pictures, NAMES, TEMPLATES)
    monkeypatch.setattr(use, "_IMAGES_PER_BATCH", 2)
    monkeypatch.setattr(use, "_TEXTS_PER_BATCH", 3)
    parts = model.classify(pictures, NAMES, TEMPLATES)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    turned = model.classify(pictures[::-1], NAMES[::-1], TEMPLATES[::-1])
    torch.testing.assert_close(turned.flip(0, 1), whole, rtol=1e-5, atol=1e-6)
    single = model.classify(pictures[2], NAMES, TEMPLATES)
    torch.testing.assert_close(single, whole[2:3], rtol=1e-5, atol=1e-6)


def test_classify__every_form_of_a_picture_is_the_same_picture(one, pictures, tmp_path):
    same = pictures[3]  # of the size of the model
    array = np.asarray(same)
    bytes_ = torch.from_numpy(array.copy()).permute(2, 0, 1)
    path = tmp_path / "picture.png"
    same.save(path)
    pixels = one.transform(False)(same)
    expected = one.classify(pixels[None], NAMES)
    single = [same, array, bytes_, path, str(path), pixels]
    several = [np.stack([array]), bytes_[None], tuple([path]), iter([same])]
    for given in [*single, [single[0]], single[-1:], *several]:
        assert torch.equal(one.classify(given, NAMES), expected)
    whole = one.classify(single, NAMES)
    torch.testing.assert_close(whole, expected.expand(6, -1))
    grey = one.classify(array[..., 0], NAMES)
    assert torch.equal(one.classify(array[..., :1], NAMES), grey)
    grey_picture = Image.fromarray(array[..., 0])
    assert torch.equal(one.classify([grey_picture], NAMES), grey)


def test_classify__floats_are_never_preprocessed_again(one):
    low = torch.full((1, 3, 32, 32), 0.5)
    with torch.no_grad():
        feature = one.encode_image(low)
    scores, _ = one.search(low, low, 1)
    torch.testing.assert_close(scores, (feature @ feature.T))
    refused("transform", one.classify, torch.rand(1, 3, 30, 30), NAMES)
    expected = one.classify(low, NAMES)  # 0.5 is the same in every type
    for other in (low.double(), low.half(), [low[0].double()]):
        assert torch.equal(one.classify(other, NAMES), expected)


@pytest.mark.parametrize(
    ("names", "templates", "error", "words"),
    [
        ([], None, ValueError, "no class_names"),
        ("cat", None, TypeError, "list of strings"),
        (["cat", 3], None, TypeError, "Entry 1"),
        (["cat", " "], None, ValueError, "empty"),
        (["cat"], [], ValueError, "no templates"),
        (["cat"], "a {}.", TypeError, "list of strings"),
        (["cat"], ["a photo."], ValueError, "exactly once"),
        (["cat"], ["{} and {}"], ValueError, "exactly once"),
        (["cat"], [None], TypeError, "Entry 0"),
        ({"cat"}, None, TypeError, "list of strings"),
    ],
)
def test_classify__refuses_other_names_and_templates(
    one, names, templates, error, words
):
    given = torch.zeros(1, 3, 32, 32)
    refused(words, one.classify, given, names, templates, error=error)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([], ValueError, "no images"),
        (torch.zeros(0, 3, 32, 32), ValueError, "There are no images"),
        (torch.zeros(3), ValueError, r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), TypeError, "uint8"),
        (np.zeros((32, 32, 3)), TypeError, "float64"),
        (np.zeros((3, 32, 32), np.uint8), ValueError, "channels last"),
        ([object()], TypeError, "is a object"),
        (None, TypeError, "NoneType"),
        ({"image": 1}, TypeError, "is a dict"),
        ([torch.zeros(1, 3, 32, 32)], ValueError, "preprocessed picture"),
        ("missing.png", FileNotFoundError, "missing.png"),
        (torch.full((1, 3, 32, 32), torch.nan), ValueError, "NaN"),
    ],
)
def test_classify__refuses_what_is_no_picture(one, images, error, words):
    refused(words, one.classify, images, NAMES, error=error)


def test_classify__adapters_act_as_they_are_set(tiny_cfg):
    model = create_dual_encoder(tiny_cfg)
    plain = model.classify(torch.ones(2, 3, 32, 32), NAMES)
    attach_lora(model, init="xavier", rank=2)
    changed = model.classify(torch.ones(2, 3, 32, 32), NAMES)
    assert not torch.allclose(changed, plain, atol=1e-4)
    model.lora.set_ids(-1)
    again = model.classify(torch.ones(2, 3, 32, 32), NAMES)
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


def test_search__equals_sorted_cosines(model, pictures, monkeypatch):
    with torch.no_grad():
        model.eval()
        images = torch.stack([model.transform(False)(p) for p in pictures])
        cosines = model.encode_text(model.tokenizer(NAMES)) @ (
            model.encode_image(images).T
        )
    model.train()
    expected = cosines.sort(dim=1, descending=True)
    for size in (2, 256):
        monkeypatch.setattr(use, "_QUERIES_PER_BLOCK", size)
        scores, indices = model.search(NAMES, pictures, k=3)
        assert (scores.shape, indices.shape) == ((3, 3), (3, 3))
        assert (scores.dtype, indices.dtype) == (torch.float32, torch.int64)
        torch.testing.assert_close(scores, expected.values[:, :3])
        assert torch.equal(indices, expected.indices[:, :3])
    assert model.training
    assert not scores.requires_grad
    assert model.search(NAMES, images)[0].shape == (3, 5)  # cut to the candidates


def test_search__texts_and_pictures_both_ways(one, pictures, tmp_path):
    path = tmp_path / "b.PNG"
    pictures[1].save(path, "png")
    scores, indices = one.search(pictures[1], [pictures[0], str(path), path], k=2)
    assert indices.tolist() == [[1, 2]]  # equal ones in their order
    torch.testing.assert_close(scores, torch.ones(1, 2))
    assert one.search("red dog", NAMES, k=1)[1].tolist() == [[0]]
    one_text, _ = one.search("red dog", pictures, 5)
    several, _ = one.search(["red dog"], iter(pictures), 5)
    assert torch.equal(one_text, several)
    assert one.search(pictures[0], NAMES, 1)[0].shape == (1, 1)
    bytes_ = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    assert one.search(bytes_, NAMES, 9)[0].shape == (2, 3)


def test_search__refuses_what_it_cannot_rank(one, pictures):
    refused("list of strings", one.search, "a", "b", error=TypeError)
    refused("no candidates", one.search, "a", [])
    refused("no query", one.search, [], ["a"])
    refused("mixes", one.search, "a", [pictures[0], "b"], error=TypeError)
    refused("k=0", one.search, "a", ["b"], k=0)
    refused("b.png", one.search, "a", ["b.png"], error=FileNotFoundError)
