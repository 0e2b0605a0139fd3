"""Rules by which dual encoders answer, on features that are given."""

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from avalanche_clip.benchmarks.datasets import MIRBDataset, MultiImageSample
from avalanche_clip.evaluation.suites.multi_image import (
    DualEncoderScorer,
    analogy_cosine,
    counted_class,
    fused,
    mean_pairwise_cosine,
    option_text,
    parse_options,
    patch_orders,
    tiled,
)
from avalanche_clip.models import create_dual_encoder
from tests.refused import refused


class Words:
    """One token per word, a start and an end."""

    context_length = 77

    def encode(self, text):
        return [0, *map(hash, text.split()), 1]


class Given:
    """Features by the colour of a picture, and by text; others are zero."""

    def __init__(self, images=(), texts=None, scale=1.0):
        self.rows, self.vectors = dict(images), dict(texts or {})
        self.size = len(next(iter([*self.rows.values(), *self.vectors.values()])))
        self.model = SimpleNamespace(
            tokenizer=Words(), logit_scale=torch.tensor(math.log(scale))
        )
        self.encoded = []

    def _row(self, vector):
        return torch.nn.functional.normalize(torch.tensor(vector).float(), dim=0)

    def images(self, key, pictures):
        zero = [0.0] * self.size
        found = [self.rows.get(p.getpixel((0, 0))[0], zero) for p in pictures]
        self.encoded += found
        return torch.stack(list(map(self._row, found)))

    def matched(self, key, pictures):
        seen = list(self.encoded)
        rows, self.encoded = self.images(key, pictures), seen
        return rows, self.texts, 1  # features are kept

    def texts(self, texts):
        zero = [0.0] * self.size
        return torch.stack([self._row(self.vectors.get(t, zero)) for t in texts])


def colour(value, size=(4, 4)):
    return Image.new("RGB", size, (value, 0, 0))


def sample(subset, values, question="a?", answer="yes", name="", **extra):
    images = [colour(v) for v in values]
    return MultiImageSample(images, question, answer, subset, name, extra)


def answered(given, samples, **options):
    data = MIRBDataset(samples)
    scorer = DualEncoderScorer(given, data, **options)
    return [a.text for s in data.subsets().values() for a in scorer.answers(s)]


E1, E2, E3 = torch.eye(3).tolist()


# ------------------------------------------------------------------ statistics
def test_cosines__golden_values():
    same, other = torch.tensor([E1, E1, E1]), torch.tensor([E1, E2, E3])
    assert mean_pairwise_cosine(5 * same) == pytest.approx(1)
    assert mean_pairwise_cosine(other) == 0
    mixed = torch.tensor([E1, E1, E2])
    assert mean_pairwise_cosine(mixed) == pytest.approx(1 / 3)


def test_analogy__raw_and_normalised():
    rows = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]])
    assert analogy_cosine(rows) == pytest.approx(1)
    unit = torch.nn.functional.normalize(rows, dim=1)
    assert analogy_cosine(unit) == pytest.approx(0.853553, abs=1e-6)
    assert analogy_cosine(torch.ones(4, 3)) == 0


@pytest.mark.parametrize("fusion", ["mean", "max", "logsumexp"])
def test_fusion__does_not_depend_on_order_and_lies_between(fusion):
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found = fused(scores, fusion, 0.1)
    torch.testing.assert_close(found, fused(scores.flip(0), fusion, 0.1))
    slow = {
        "mean": [sum(c) / 5 for c in scores.T.tolist()],
        "max": [max(c) for c in scores.T.tolist()],
        "logsumexp": [
            0.1 * math.log(sum(math.exp(s / 0.1) for s in c)) for c in scores.T.tolist()
        ],
    }[fusion]
    torch.testing.assert_close(found, torch.tensor(slow))
    assert (fused(scores, "logsumexp", 1e-4) - scores.amax(0)).abs().max() < 1e-3


def test_tiles__are_laid_row_by_row_on_white():
    paper = tiled([colour(1, (4, 2)), colour(2, (2, 3)), colour(3, (1, 1))])
    assert paper.size == (8, 6)
    assert [paper.getpixel(p)[0] for p in ((0, 0), (4, 0), (0, 3))] == [1, 2, 3]
    assert paper.getpixel((7, 5)) == paper.getpixel((1, 4)) == (255, 255, 255)


# ------------------------------------------------------------------- questions
@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which?\nA. one\nB. two words", {"A": "one", "B": "two words"}),
        ("Which? (A) one (B) two (C) three", {"A": "one", "B": "two", "C": "three"}),
        ("Which? A: 1 B) 2", {"A": "1", "B": "2"}),
        ("Which is A? A. x B. y", {"A": "x", "B": "y"}),
        ("A. alone", {}),
        ("Which? B. x C. y", {}),
        ("Which? A. x C. y", {}),
        ("USA. Then A. x B. y", {"A": "x", "B": "y"}),
        ("no options", {}),
    ],
)
def test_options(question, options):
    assert parse_options(question) == options


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("How many dogs are there in total?", "dogs"),
        ('how many "hot dogs" can you see?', "hot dogs"),
        ('How many drawings of "one in ten" are there?', "one in ten"),
        ("How many traffic lights in all images?", "traffic lights"),
        ("How many cats?", "cats"),
        ("Are there cats?", ""),
    ],
)
def test_counted_class(question, name):
    assert counted_class(question) == name


@pytest.mark.parametrize("words", [3, 200])
def test_option__comes_first_and_is_never_cut(words):
    model = create_dual_encoder("tiny-emoji")
    tokenizer, question = model.tokenizer, " ".join(["which cat face"] * words)
    question += "? A. red apple B. green apple"
    text = option_text("green apple", question, tokenizer)
    assert text.startswith("green apple which cat") and "red" not in text
    limit = tokenizer.context_length
    assert len(tokenizer.encode(text)) <= limit
    assert len(tokenizer.encode(text)) > limit - 6 or words == 3
    ids = tokenizer([text])[0].tolist()
    wanted = tokenizer.encode("green apple")[1:-1]
    assert ids[1 : 1 + len(wanted)] == wanted
    assert tokenizer.num_truncated == 0
    assert option_text("apple " * 99, question, tokenizer) == ""


def test_option__keeps_as_many_words_as_fit():
    question = " ".join(["w"] * 200)
    assert len(option_text("a b", question, Words()).split()) == 75
    assert option_text("a b", "c d", Words()) == "a b c d"


# ----------------------------------------------------------------------- rules
def test_names__two_images_of_a_place_choose_its_name():
    given = Given(
        {10: E1, 20: E2, 30: E3},
        {"a photo of Rome": E1, "a photo of Oslo": E2, "a photo of Bern": E3},
    )
    places = [("Rome", 10), ("Oslo", 20), ("Bern", 30)]
    samples = [sample("places", [v, v], "Which?", n, n) for n, v in places]
    for order in (samples, samples[::-1]):
        for fusion in ("mean", "max", "logsumexp", "concat"):
            found = answered(given, order, fusion=fusion)
            assert found == [s.answer for s in order]


def test_names__two_images_vote():
    given = Given({10: [1, 0.9, 0], 20: E2}, {"a photo of A": E1, "a photo of B": E2})
    ask = [sample("places", [10, 20], "Which?", n, n) for n in "AB"]
    assert answered(given, ask) == ["B", "B"]


def test_same__half_are_above_the_median():
    given = Given({10: E1, 20: E2, 30: [1, 1, 0]})
    pairs = [(10, 10), (10, 20), (30, 30), (20, 30)]
    samples = [sample("domain", p, name=str(p)) for p in pairs]
    assert answered(given, samples) == ["yes", "no", "yes", "no"]
    assert answered(given, samples[::-1]) == ["no", "yes", "no", "yes"]
    places = [sample("places", p, name=str(p)) for p in pairs]
    assert answered(given, places) == ["yes", "no", "yes", "no"]


def test_same__a_collapsed_encoder_says_no():
    given = Given({10: E1, 20: [1, 1e-5, 0]})
    samples = [sample("attribute", p, name=str(p)) for p in [(10, 20), (10, 10)]]
    assert answered(given, samples) == ["no", "no"]


def test_analogy__exceeds_the_median():
    given = Given({1: [1, 0, 0], 2: [1, 1, 0], 3: [0, 0, 1], 4: [0, 1, 1], 5: E2})
    samples = [
        sample("analogy", (1, 2, 3, 4), name="a"),
        sample("analogy", (1, 2, 4, 3), name="b"),
    ]
    assert answered(given, samples) == ["yes", "no"]


def test_count__is_the_rounded_sum_of_expected_counts():
    texts = {f"a photo of {k} dogs": [1, k / 4, 0] for k in range(21)}
    given = Given({10: E1, 20: E2, 30: [1, 1, 0]}, texts, scale=7.0)
    question = "How many dogs are there?"
    total = 0.0
    for value in (20, 30, 20):
        image = given._row(given.rows[value]).tolist()
        scores = []
        for k in range(21):
            text = given._row(texts[f"a photo of {k} dogs"]).tolist()
            cosine = sum(a * b for a, b in zip(image, text, strict=True))
            scores.append(math.exp(7.0 * cosine))
        total += sum(k * s for k, s in enumerate(scores)) / sum(scores)
    asked = [sample("count", (20, 30, 20), question, 3)]
    assert answered(given, asked) == [str(round(total))]
    assert total > 20  # a sum may exceed what one image may hold
    assert answered(given, asked, fusion="max") == [str(round(total))]


def test_letters__of_food_by_option_texts():
    given = Given({10: E2}, {"an apple Which?": E1, "a pear Which?": E2})
    asked = [sample("foods", [10], "Which? A. an apple B. a pear", "B")]
    assert answered(given, asked) == ["B"]


QUESTION = "Order?\nA. 1 2 3 4\nB. 2 1 3 4\nC. 4 3 2 1"


def jigsaw(**changes):
    whole = Image.new("RGB", (4, 4))
    for k, value in enumerate((10, 20, 30, 40)):
        whole.paste(colour(value, (2, 2)), (k % 2 * 2, k // 2 * 2))
    images = [colour(v) for v in (20, 10, 30, 40)]
    images.insert(2, whole)
    extra = {"whole": 2, "grid": [2, 2], **changes}
    question = extra.pop("question", QUESTION)
    return MultiImageSample(images, question, "B", "image_jigsaw", "", extra)


def test_jigsaw__the_order_of_patches_that_fits_the_cells():
    given = Given({10: E1, 20: E2, 30: E3, 40: [1, 1, 1]})
    assert answered(given, [jigsaw()]) == ["B"]
    assert len(given.encoded) == 8
    assert patch_orders(jigsaw())["C"] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"whole": None},
        {"whole": 5},
        {"whole": -1},
        {"whole": "2"},
        {"grid": [2, 3]},
        {"grid": 4},
        {"grid": [4]},
        {"grid": [-2, -2]},
        {"grid": [0, 2]},
        {"grid": [2, "2"]},
        {"question": "Order? A. 1 2 3 B. 1 2 3 4"},
        {"question": "Order? A. 1 2 3 3 B. 1 2 3 4"},
        {"question": "Order?"},
    ],
)
def test_jigsaw__what_is_not_said_is_not_supported(changes):
    assert not patch_orders(jigsaw(**changes))


UNSUPPORTED = [
    sample("codeu", (10,), "Which? A. x B. y", "A"),
    sample("plot_code", (10,)),
    sample("3d_scene", (10,), "How many cubes are there?", 3),
    sample("visual_chain", (10,), "What is c?", 3),
    sample("arxiv", (10,)),
    sample("attribute", (10,)),
    sample("analogy", (10, 10, 10)),
    sample("count", (10,), "Count them.", 3),
    sample("count", (), "How many dogs are there?", 3),
    sample("food", (10,), "Which?", "A"),
    sample("food", (10,), f"Which? A. {'x ' * 90} B. y", "A"),
    sample("image_jigsaw", (10, 20), QUESTION, "A"),
    sample("codeu_text", (), "Which? A. x B. y", "A"),
]


@pytest.mark.parametrize("asked", UNSUPPORTED, ids=lambda s: s.subset)
def test_questions_without_a_rule__are_not_supported(asked):
    given = Given({10: E1})
    other = sample("attribute", (10, 10), name="other")
    data = MIRBDataset([asked, other])
    (found,) = DualEncoderScorer(given, data).answers([asked])
    assert found.text is None and "no rule" in found.reason
    refused("No rule.*give other subsets", DualEncoderScorer, given, [asked])


def test_control__has_the_rule_of_its_base():
    texts = {"a photo of 3 dogs": E1}
    given = Given({10: E1}, texts, scale=100.0)
    asked = [sample("count_concat", (10,), "How many dogs are there?", 3)]
    assert answered(given, asked) == ["3"]


def test_concat__leaves_no_rule_for_several_images():
    samples = [
        sample("attribute", (10, 10)),
        sample("analogy", (10, 10, 10, 10)),
        sample("places", (10, 10)),
        sample("count", (10, 10), "How many dogs are there?", 3),
        jigsaw(),
    ]
    given = Given({10: E1}, {"a photo of 3 dogs": E1}, scale=100.0)
    scorer = DualEncoderScorer(given, MIRBDataset(samples), fusion="concat")
    assert list(filter(None, scorer.rules.values())) == ["count"]
    assert scorer.answers([samples[3]])[0].text == "3"
    assert len(given.encoded) == 1


def test_images__that_questions_share_are_encoded_once(tmp_path):
    colour(10).save(tmp_path / "1.png")
    paths = [tmp_path / "1.png", tmp_path / "1.png"]
    samples = [
        MultiImageSample(paths, "a?", "yes", "attribute", str(k)) for k in range(3)
    ]
    given = Given({10: E1})
    assert answered(given, samples) == ["no"] * 3
    assert len(given.encoded) == 1


def test_wrong_settings__are_refused():
    given, asked = Given({10: E1}), [sample("attribute", (10, 10))]
    refused("fusion", DualEncoderScorer, given, asked, fusion="min")
    refused("no effect", DualEncoderScorer, given, asked, tau=0.1)
    refused("tau", DualEncoderScorer, given, asked, fusion="logsumexp", tau=0)
