"""MMVP-VLM against the released way, pair by pair, and what a suite promises."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_clip.benchmarks.datasets import BlindEmoji, MMVPVLMDataset
from avalanche_clip.evaluation.suites import MMVPVLMSuite, mmvp_vlm
from avalanche_clip.models import create_dual_encoder
from tests.benchmarks.datasets.mmvp_files import write_vlm
from tests.helpers import assert_same_weights, weights
from tests.models.conftest import (  # noqa: F401
    hf_clip_folder,
    hf_siglip_folder,
    native_cfg,
    tokenizer_file,
)

ORTHONORMAL = torch.linalg.qr(torch.randn(300, 300, generator=torch.manual_seed(0)))[0]


class NumberEncoder(nn.Module):
    """Reads the number that a patch's colour says, and that in a text."""

    embed_dim, image_size = 300, 4

    def __init__(self, mistakes=(), collapsed=False):
        super().__init__()
        self.mistakes, self.collapsed = set(mistakes), collapsed
        self.seen = []
        self.tokenizer = SimpleNamespace(vocab_size=300)
        self.tokenizer = self._tokens

    def transform(self, train):
        def read(image):
            assert image.mode == "RGB"
            red, green, _ = np.asarray(image.resize((1, 1))).reshape(3).tolist()
            return torch.full((3, 4, 4), float(red + 256 * round(green / 64)))

        return read

    def _tokens(self, texts):
        self.seen += texts
        digits = ["".join(c for c in t if c.isdigit()) or "0" for t in texts]
        return torch.tensor([[int(d)] for d in digits])

    def encode_image(self, image, normalize=True):
        numbers = image[:, 0, 0, 0].round().long().clamp(0, 299).tolist()
        # Colours of JPEG files are off by one at times: pairs are what counts.
        swapped = [
            n + (1 if n % 2 else -1) if (n + 1) // 2 in self.mistakes else n
            for n in numbers
        ]
        rows = ORTHONORMAL[swapped]
        return torch.ones_like(rows) / 300**0.5 if self.collapsed else rows

    def encode_text(self, text, normalize=True):
        return ORTHONORMAL[text[:, 0]]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm"), kind="png")


def test_suite__perfect_reversed_and_collapsed_models(vlm):
    model = NumberEncoder()
    values = mmvp_vlm(model, vlm)
    assert {t: v["text_to_image_acc"] for t, v in values.items()} == dict.fromkeys(
        values, 1.0
    )
    assert len(values) == 10 and values["all"]["margin"] == pytest.approx(1)
    assert values["all"]["blindness"] == pytest.approx(0, abs=1e-5)
    assert "a photo of it is number 7" in model.seen
    reversed_after_4 = NumberEncoder(mistakes=range(61, 136))
    found = [v["text_to_image_acc"] for v in mmvp_vlm(reversed_after_4, vlm).values()]
    assert found == [pytest.approx(4 / 9)] + [1.0] * 4 + [0.0] * 5
    flat = mmvp_vlm(NumberEncoder(collapsed=True), vlm)
    assert all(v["text_to_image_acc"] == 0 for v in flat.values())
    assert flat["all"]["blindness"] == pytest.approx(1)


def test_suite__intervals_and_counts(vlm):
    values = mmvp_vlm(NumberEncoder(mistakes=[1, 2, 3]), vlm, prompt="")
    first = values["Orientation and Direction"]
    assert first["text_to_image_acc"] == 0.8 and first["count"] == 30
    assert first["text_to_image_acc_low"] == pytest.approx(0.5481, abs=1e-4)
    assert first["text_to_image_acc_high"] == pytest.approx(0.9295, abs=1e-4)
    whole = values["all"]
    assert whole["count"] == 270
    assert whole["text_to_image_acc"] == pytest.approx(132 / 135)
    assert 0.94 < whole["text_to_image_acc_low"] < 0.97
    assert 0.99 < whole["text_to_image_acc_high"] <= 1


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return create_dual_encoder("tiny-emoji-vit").train()


class Few:
    """The first pairs of the emoji, in some order."""

    def __init__(self, places=range(0, 135, 9)):
        whole = BlindEmoji()
        self.items = [whole[place] for place in places]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, item):
        return self.items[item]


@torch.no_grad()
def released(model, pairs, prompt):
    """One pair at a time, with a softmax over its two images."""
    model, hits = copy.deepcopy(model).eval(), {}
    transform = model.transform(False)
    for images, statements, pattern, _ in (pairs[k] for k in range(len(pairs))):
        seen = F.normalize(
            model.encode_image(torch.stack([*map(transform, images)])), dim=1
        )
        texts = model.tokenizer([prompt + text for text in statements])
        said = F.normalize(model.encode_text(texts), dim=1)
        chosen = (100 * seen @ said.T).softmax(0)[0] > 0.5
        hits.setdefault(pattern, []).append(chosen.tolist() == [True, False])
    return {pattern: float(np.mean(found)) for pattern, found in hits.items()}


def test_suite__equals_the_released_way_for_any_batch_and_order(tiny):
    pairs = Few(range(0, 135, 5))
    wanted = released(tiny, pairs, "a photo of ")
    assert 0 < sum(wanted.values()) < len(wanted)
    for size, places in [(1, range(27)), (7, range(27)), (128, reversed(range(27)))]:
        moved = Few([5 * place for place in places])
        found = mmvp_vlm(tiny, moved, batch_size=size)
        mean = found.pop("all")["text_to_image_acc"]
        assert {p: v["text_to_image_acc"] for p, v in found.items()} == wanted
        assert mean == pytest.approx(np.mean(list(wanted.values())))


@pytest.mark.parametrize("kind", ["native_cfg", "hf_clip_folder", "hf_siglip_folder"])
def test_suite__scores_towers_of_all_libraries(kind, request):
    given = request.getfixturevalue(kind)
    if kind == "native_cfg":
        given = {"model_cfg": given, "tokenizer": {"type": "open_clip"}}
    model = create_dual_encoder(given)
    found = mmvp_vlm(model, Few(), prompt="a ")
    wanted = released(model, Few(), "a ")
    del found["all"]
    assert {p: v["text_to_image_acc"] for p, v in found.items()} == wanted


def test_suite__encodes_once_and_leaves_everything_as_it_was(tiny):
    suite = MMVPVLMSuite(Few(), prompt="", batch_size=8)
    before, modes = weights(tiny), [m.training for m in tiny.modules()]
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = suite.evaluate(tiny)
    assert suite.evaluate(tiny) == first
    assert suite.features.encoded == {"images": 30, "texts": 30}
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()
    assert random.getstate() == state[2]
    assert_same_weights(before, tiny)
    assert [m.training for m in tiny.modules()] == modes
    changed = copy.deepcopy(tiny)
    with torch.no_grad():
        changed.blocks("text")[0].norm1.weight.mul_(-1)
    assert suite.evaluate(changed) != first
    assert suite.features.encoded == {"images": 30, "texts": 60}
    assert suite.state_dict() == {}


def test_suite__identity_tells_prompt_images_and_statements():
    known = MMVPVLMSuite(Few()).identity()
    assert MMVPVLMSuite(Few()).identity() == known
    assert MMVPVLMSuite(Few(), prompt="").identity() != known
    other, swapped = Few(), Few()
    first = other.items[0]
    other.items[0] = first._replace(statements=first.statements[::-1])
    swapped.items[0] = first._replace(images=first.images[::-1])
    assert MMVPVLMSuite(other).identity()["data"] != known["data"]
    assert MMVPVLMSuite(swapped).identity()["data"] != known["data"]


def test_suite__says_what_is_missing(vlm, tmp_path, tiny):
    suite = MMVPVLMSuite(tmp_path / "nowhere")
    assert "Questions.csv" in suite.missing["all"]
    assert suite.evaluate(tiny) == {} and suite.identity()["pairs"] == 0
    suite.check(tiny)
    with pytest.raises(FileNotFoundError, match=r"Questions\.csv"):
        mmvp_vlm(tiny, tmp_path / "nowhere")
    assert not MMVPVLMSuite(vlm, name="other").missing


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "no pairs"),
        ([(("x", "y"), ("a", "b"), "p")], TypeError, "Picture 0"),
        (
            [((torch.ones(3, 2, 2),), ("a", "b"), "p")],
            ValueError,
            "1 images of pair 0 ",
        ),
    ],
)
def test_suite__refuses_data(tiny, data, error, message):
    with pytest.raises(error, match=message):
        MMVPVLMSuite(data).check(tiny)


def test_suite__refuses_what_is_no_dual_encoder_and_other_prompts(tiny):
    with pytest.raises(TypeError, match="DualEncoder"):
        mmvp_vlm(nn.Linear(2, 2), Few())
    with pytest.raises(TypeError, match="prompt"):
        MMVPVLMSuite(Few(), prompt=None)


def test_dataset__is_what_the_suite_reads(vlm):
    by_folder = MMVPVLMSuite(vlm).identity()
    assert by_folder == MMVPVLMSuite(MMVPVLMDataset(vlm)).identity()
