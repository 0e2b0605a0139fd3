"""MIRB as a whole: generative models, dual encoders, values, answers that survive."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.benchmarks.datasets import (
    MIRBDataset,
    MultiImageSample,
    emoji_mirb,
)
from avalanche_clip.evaluation.suites import (
    Answer,
    ChatScorer,
    MIRBSuite,
    MultiImageScorer,
    Suite,
    mirb,
    mirb_values,
)
from avalanche_clip.evaluation.suites.mirb import DIRECTLY, REASONS, THOUGHTS
from avalanche_clip.models import create_dual_encoder
from tests.evaluation.suites import tiny_chat
from tests.helpers import assert_same_weights, stub_model
from tests.refused import refused
from tests.training.small_runs import go

KINDS = {
    "codeu": ("which a B", "C"),
    "count": ("how many cats are there", "3"),
    "attribute": ("are there cats", "no"),
    "plot_code": ("which word", "a"),
    "places": ("which photo", "yes"),
    "codeu_text": ("which a A", "A"),
}


def picture(seed, side=20):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def some(count=4):
    """Samples of each kind with 0 to 3 images."""
    found = []
    for subset, (question, answer) in KINDS.items():
        for k in range(count):
            images = [picture(9 * k + i) for i in range(0 if "text" in subset else k)]
            text = question + " a" * (k % 3)
            found.append(
                MultiImageSample(images, text, answer, subset, f"{subset}/{k}")
            )
    return found


@pytest.fixture(scope="module")
def parts():
    return tiny_chat.model(), tiny_chat.processor()


@pytest.fixture(scope="module")
def alone(parts):
    """Answers with one question in each batch."""
    return mirb(ChatScorer(*parts, batch_size=1), some()).answers


# ---------------------------------------------------------- generative models
@pytest.mark.parametrize("sizes", [{"batch_size": 3}, {"batch_images": 5}, {}])
def test_chat__any_batches_and_order_give_the_same(parts, alone, sizes):
    samples = some()
    for order in (samples, samples[::-1]):
        result = mirb(parts[0], order, processor=parts[1], **sizes)
        assert result.answers == alone
    letters = [alone[s.id].text for s in samples if s.kind == "letter"]
    assert set(letters) <= set("ABCDE")


def test_batches__are_bounded_and_hold_each_question_once(parts):
    scorer = ChatScorer(*parts, batch_size=4, batch_images=6)
    samples = [s for s in some(9) if s.subset == "count"]
    found = scorer.batches(samples)
    assert sorted(s.id for b in found for s in b) == sorted(s.id for s in samples)
    for batch in found:
        counts = [len(s.images) for s in batch]
        assert len(batch) <= 4 and (sum(counts) <= 6 or len(batch) == 1)
        assert all(counts) or not any(counts)
    assert [[len(s.images) for s in b] for b in found] == [
        *([0], [1, 2, 3], [4], [5], [6], [7], [8])
    ]


def test_letters__compete_with_each_other_only(parts):
    scorer = ChatScorer(*parts)
    logits = torch.zeros(64)
    ids = scorer.chat.letter_ids(False)
    logits[[3, ids[2], ids[4]]] = torch.tensor([9.0, 5.0, 4.0])  # 3 is no letter
    scorer.chat.next_logits = lambda turns: [logits] * len(turns)
    asked = MultiImageSample([picture(0)], "which A B", "A", "food")
    assert scorer.answers([asked]) == [Answer("C")]


def test_instruction__stands_first_and_images_before_the_question(parts):
    seen = []
    scorer = ChatScorer(*parts)
    scorer.chat.generate = lambda turns, new=15: (
        seen.extend((t, new) for t in turns) or ["yes"] * len(turns)
    )
    asked = MultiImageSample([picture(0), picture(1)], "are there", "no", "attribute")
    scorer.answers([asked])
    ((turn, new),) = seen
    assert turn.instruction == "Answer with a single word." and new == 15
    assert len(turn.images) == 2 and turn.question == "are there"


def test_reasoning__comes_before_the_answer_and_without_instruction(parts):
    seen = []
    scorer = ChatScorer(*parts, reasoning=True)
    scorer.chat.generate = lambda turns, new=15: (
        seen.extend((t, new) for t in turns) or [f"text {new}"] * len(turns)
    )
    scorer.chat.next_logits = lambda turns: (
        seen.extend((t, 1) for t in turns) or [torch.arange(64.0)]
    )
    word = MultiImageSample([picture(0)], "are there", "no", "attribute")
    letter = MultiImageSample([picture(0)], "which", "B", "food")
    assert scorer.answers([word]) == [Answer("text 15", reasoning="text 250")]
    assert scorer.answers([letter]) == [Answer("E", reasoning="text 250")]
    (first, many), (second, few), *_, (last, one) = seen
    assert (many, few, one) == (250, 15, 1)
    assert first.question == f"are there {REASONS}"
    assert second.question == f"are there\n{THOUGHTS}text 250\n{DIRECTLY}"
    assert last.question == f"which\n{THOUGHTS}text 250\n{DIRECTLY}"
    assert {turn.instruction for turn, _ in seen} == {""}
    assert {len(turn.images) for turn, _ in seen} == {1}


def test_long_prompts__are_not_scored_and_large_images_are_counted(parts):
    model = tiny_chat.model(context=50)
    samples = [s for s in some(9) if s.subset == "count"]
    result = mirb(model, samples, processor=parts[1], max_pixels=100)
    lost = [name for name, a in result.answers.items() if a.text is None]
    assert lost == ["count/6", "count/7", "count/8"]
    assert all("longer" in result.answers[name].reason for name in lost)
    values = result.tasks["count"]
    assert values["supported"] == pytest.approx(6 / 9)
    assert values["downscaled"] == pytest.approx(8 / 9)
    assert result.settings["max_pixels"] == 100
    whole = mirb(parts[0], samples, processor=parts[1]).tasks["count"]
    assert whole["downscaled"] == 0 and whole["supported"] == 1


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_answers__a_stopped_evaluation_goes_on_to_the_same_file(
    tmp_path, parts, stop, monkeypatch
):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "deep" / "part.jsonl"
    options = {"processor": parts[1], "batch_size": 3}
    expected = mirb(parts[0], some(), answers=whole, **options)
    calls = []
    answers = ChatScorer.answers

    def stopping(self, samples):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(len(samples))
        return answers(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(ChatScorer, "answers", stopping)
        with pytest.raises(KeyboardInterrupt):
            mirb(parts[0], some(), answers=part, **options)
    text = part.read_text(encoding="utf-8")
    assert len(text.splitlines()) == 1 + sum(calls)
    if stop == 4:  # killed while a line was being written
        part.write_text(text + '{"id": "count/0", "te', encoding="utf-8")
    if stop == 1:  # killed while the lines of a batch were being written
        part.write_text("".join(text.splitlines(True)[:-1]), encoding="utf-8")
    assert mirb(parts[0], some(), answers=part, **options) == expected
    assert part.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(ChatScorer, "answers", None)  # nothing is asked again
    assert mirb(parts[0], some(), answers=part, **options) == expected


def test_answers__of_something_else_are_refused(tmp_path, parts):
    path = tmp_path / "answers.jsonl"
    mirb(parts[0], some(1), processor=parts[1], answers=path)
    for data, options in [
        (some(1), {"reasoning": True}),
        (some(1), {"protocol": "normalised"}),
        (some(1), {"max_pixels": 9}),
        (some(1)[1:], {}),
    ]:
        options = {"processor": parts[1], "answers": path, **options}
        refused("give another file", mirb, parts[0], data, **options)
    other = tiny_chat.model(seed=1)
    refused("another", mirb, other, some(1), processor=parts[1], answers=path)
    lines = path.read_text(encoding="utf-8").splitlines(True)
    damaged = lines[1].replace('"id"', '"di"')
    for wrong in (damaged, "3\n", "{\n"):
        path.write_text(lines[0] + wrong, encoding="utf-8")
        refused("jsonl", mirb, parts[0], some(1), processor=parts[1], answers=path)


def test_normalised__scores_what_the_official_rules_do_not():
    class Fixed(MultiImageScorer):
        def answers(self, samples):
            return [Answer("(C)") for _ in samples]

    asked = [MultiImageSample([], "which", "C", "codeu", "0")]
    found = [mirb(Fixed(), asked, protocol=p) for p in ("official", "normalised")]
    assert [result.tasks["codeu"]["acc"] for result in found] == [0, 1]
    assert [result.tasks["codeu"]["unparsed"] for result in found] == [1, 0]
    assert [r.settings["protocol"] for r in found] == ["official", "normalised"]
    refused("too many", mirb, Fixed(), asked, reasoning=True, error=TypeError)


# -------------------------------------------------------------------- values
def questions(subset, golds):
    question = "which A. a B. b C. c D. d" if subset in ("food", "codeu") else "a?"
    return [
        MultiImageSample([], question, gold, subset, f"{subset}/{k}")
        for k, gold in enumerate(golds)
    ]


def table():
    hits = {
        **{"food": (1, 2), "sightseeing": (3, 4), "codeu": (1, 1), "plot_code": (0, 2)},
        **{"analogy": (2, 4), "3d_scene": (1, 1), "image_jigsaw": (1, 4)},
        **{"count": (2, 2), "attribute": (3, 4), "visual_chain": (0, 3)},
        "arxiv": (1, 2),
    }
    gold = {"analogy": "yes", "attribute": "yes", "3d_scene": "7", "count": "7"}
    samples, answers = [], {}
    for subset, (right, count) in hits.items():
        asked = questions(subset, [gold.get(subset, "B")] * count)
        samples += asked
        for k, sample in enumerate(asked):
            answers[sample.id] = Answer(sample.answer if k < right else "-")
    return samples, answers


def test_values__golden_table():
    samples, answers = table()
    found = mirb_values(MIRBDataset(samples), answers)
    for name, value in {
        **{"Knowledge": 0.625, "Reasoning": 0.625, "Perception": 2 / 3},
        **{"Multi-hop": 0.25, "overall": 0.541667},
    }.items():
        assert found[name]["acc"] == pytest.approx(value, abs=1e-6)
        assert found[name]["with_chance"] == found[name]["acc"]
    food = found["food"]
    assert list(food)[0] == "acc" and food["count"] == 2
    assert food["acc_low"] < 0.5 < food["acc_high"]
    assert food["unparsed"] == 0.5 and found["3d_scene"]["unparsed"] == 0


def test_values__missing_and_control_subsets():
    samples, answers = table()
    kept = [s for s in samples if s.subset not in ("food", "visual_chain")]
    controls = questions("codeu_text", ["A"])
    answers["codeu_text/0"] = Answer("A")
    found = mirb_values(MIRBDataset(kept + controls), answers)
    assert found["codeu_text"]["acc"] == 1 and "overall" not in found
    assert found["Knowledge"] == {"acc": 0.75, "partial": 1.0}
    assert found["Reasoning"] == {"acc": 0.625, "partial": 0.0, "with_chance": 0.625}


def test_values__questions_without_an_answer_are_guesses():
    samples, answers = table()
    samples += [
        MultiImageSample([], "a?", "no", "sightseeing", "sightseeing/9"),
        MultiImageSample([], "which", "A", "codeu", "codeu/9"),
    ]
    lost = {"analogy/0", "visual_chain/0", "visual_chain/1", "visual_chain/2"}
    lost |= {"food/0", "sightseeing/0", "sightseeing/9", "codeu/9"}
    answers.update({name: Answer(None, "no") for name in lost})
    found = mirb_values(MIRBDataset(samples), answers)
    assert found["analogy"]["acc"] == pytest.approx(1 / 3)
    assert found["analogy"]["supported"] == 0.75
    assert found["analogy"]["with_chance"] == (1 + 0.5) / 4
    assert found["food"]["with_chance"] == 0.25 / 2  # one of four options
    assert found["codeu"]["with_chance"] == (1 + 1 / 5) / 2  # options not readable
    assert found["sightseeing"]["with_chance"] == (2 + 0.5) / 5
    chain = found["visual_chain"]
    assert chain["with_chance"] == chain["supported"] == 0 and "acc" not in chain
    assert found["Multi-hop"] == {"acc": 0.5, "partial": 1.0, "with_chance": 0.25}
    assert found["overall"].keys() == {"with_chance"}


# --------------------------------------------------------------- dual encoders
@pytest.fixture(scope="module")
def model():
    return create_dual_encoder("tiny-emoji", "emoji-2010")


def test_suite__knows_more_than_chance_and_encodes_once():
    model, suite = create_dual_encoder("tiny-emoji", "icons"), MIRBSuite()
    assert isinstance(suite, Suite) and suite.name == "mirb"
    suite.check(model)
    found = suite.evaluate(model)
    assert found["image_jigsaw"]["acc_low"] > 0.4  # chance is 0.25
    assert found["attribute"]["acc_low"] > 0.6  # chance is 0.5
    assert found["visual_chain"]["supported"] == 0
    assert found["Perception"]["partial"] == 0 and "overall" not in found
    assert suite.features.encoded == {"images": 768, "texts": 48 * 21}
    assert suite.evaluate(model) == found
    assert suite.features.encoded == {"images": 768, "texts": 48 * 21}
    assert suite.state_dict() == {} and suite.missing == {}


def test_suite__batches_and_order_change_nothing(model):
    samples = [s for s in emoji_mirb() if int(s.id.split("/")[1]) < 6]
    found = MIRBSuite(samples).evaluate(model)
    assert MIRBSuite(samples[::-1], batch_size=7).evaluate(model) == found
    result = mirb(model, samples)
    assert result.tasks == found and result.settings["protocol"] == "official"
    assert len(result.answers) == len(samples)


def test_suite__counts_depend_on_the_scale(model):
    suite = MIRBSuite([s for s in emoji_mirb() if s.subset == "count"][:8])
    first = suite.answers(model)
    scale = model.logit_scale.detach().clone()
    try:
        with torch.no_grad():
            model.logit_scale.fill_(-5.0)
        assert suite.answers(model) != first
    finally:
        with torch.no_grad():
            model.logit_scale.copy_(scale)
    assert suite.answers(model) == first


def test_suite__identity_tells_data_and_settings(model):
    samples = emoji_mirb()[:4]
    known = MIRBSuite(samples).identity()
    assert known == MIRBSuite(samples[::-1], batch_size=3, name="b").identity()
    for other in (
        MIRBSuite(samples[:3]),
        MIRBSuite(samples, fusion="max"),
        MIRBSuite(samples, fusion="logsumexp", tau=0.2),
    ):
        assert other.identity() != known
    json.dumps(known)


def test_suite__missing_files_are_told(tmp_path):
    rows = [{"questions": "How many cats?", "answers": 1, "images": ["a.png"]}]
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "count.json").write_text(json.dumps(rows), encoding="utf-8")
    suite = MIRBSuite(tmp_path)
    assert len(suite.missing) == 10 and "foods.json" in suite.missing["food"]


def test_suite__refuses_what_it_cannot_score(model, parts):
    asked = questions("codeu", ["A"])
    refused("No rule", MIRBSuite(asked).check, model)
    refused("DualEncoder", MIRBSuite().check, parts[0], error=TypeError)
    refused("fusion", MIRBSuite, fusion="sum")
    refused("no effect", MIRBSuite, tau=0.3)
    refused("for generative models", mirb, model, answers="a.jsonl")
    refused("protocol", mirb, model, protocol="mine")
    scorer = ChatScorer(*parts, protocol="normalised")
    refused("not that of the scorer", mirb, scorer, asked)
    refused("no generate", mirb, 3, asked, processor=parts[1], error=TypeError)


def few_values():
    """Values of some questions with small batches."""
    samples = [s for s in emoji_mirb() if int(s.id.split("/")[1]) < 4]
    suite = MIRBSuite(samples, batch_size=16)
    return suite.evaluate(create_dual_encoder("tiny-emoji", "emoji-2010"))


class Tensors(MultiImageSample):
    """Images as the stub takes them."""

    def picture(self, place):
        seed = 2 * int(self.id) + place if self.id.isdigit() else place
        return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_stub__is_scored_as_any_dual_encoder():
    asked = Tensors([picture(0), picture(1)], "a?", "yes", "attribute")
    assert mirb(stub_model(), [asked]).tasks["attribute"]["supported"] == 1


def test_run__has_a_row_per_evaluation_and_stays_as_it_was(tmp_path):
    asked = [
        Tensors([picture(2 * k), picture(2 * k + 1)], "a?", gold, "attribute", str(k))
        for k, gold in enumerate(["yes", "no"] * 3)
    ]
    suite = MIRBSuite(asked, batch_size=4)
    strategy, result = go(tmp_path / "with", report=True, run={"suites": [suite]})
    plain, _ = go(tmp_path / "without")
    assert_same_weights(strategy.model, plain.model)
    rows = result.results["suites"]["mirb"]
    assert list(rows) == ["before", "0", "1", "2"]
    assert rows["2"] == suite.evaluate(strategy.model)
    assert suite.features.encoded["images"] == 4 * 12  # once per state of the model
    assert "attribute" in (tmp_path / "with" / "report.html").read_text("utf-8")


def test_scorer__reasoning_is_true_or_false():
    with pytest.raises(ValueError, match="reasoning='no' is unknown"):
        ChatScorer(None, None, reasoning="no")
