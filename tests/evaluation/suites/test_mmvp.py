"""MMVP for models that answer in words: the parser, the pairs, the whole path."""

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks.datasets import MMVPDataset
from avalanche_clip.evaluation.suites import (
    mmvp,
    mmvp_scores,
    parse_option,
)
from avalanche_clip.evaluation.suites.chat import ChatModel, Turn
from tests.benchmarks.datasets.mmvp_files import write_mmvp
from tests.evaluation.suites import tiny_chat


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        # the rows of the paper's note
        ("(a)", ("x", "y"), "a"),
        ("The answer is (B).", ("x", "y"), "b"),
        ("a", ("x", "y"), "a"),
        ("b.", ("x", "y"), "b"),
        ("It is a closed wing", ("Open", "Closed"), "b"),
        ("a dog", ("Left", "Right"), None),
        ("(a) or (b)", ("Left", "Right"), None),
        ("", ("x", "y"), None),
        # and others
        (None, ("x", "y"), None),
        ("  [B]  ", ("x", "y"), "b"),
        ("(a", ("x", "y"), "a"),
        ("A: because it is (obviously)", ("x", "y"), "a"),
        ("B) Right, not left", ("Left", "Right"), "b"),
        ("b, since", ("x", "y"), None),
        ("b,", ("x", "y"), "b"),
        ("(a) and again (A)", ("x", "y"), "a"),
        ("(a) or (b)? Right.", ("Left", "Right"), "b"),
        ("A closed, not an open one", ("Open", "Closed"), None),
        ("It is closedness", ("Open", "Closed"), None),
        ("The C++ (x) one", ("C++", "C"), None),
        ("Written in C++", ("C++", "Java"), "a"),
        ("about a bird", ("x", "y"), None),
        ("(c)", ("x", "y"), None),
        ("ANSWER: YES", ("Yes", "No"), "a"),
        ("no\nyes", ("Yes", "No"), None),
        ("a.b", ("x", "y"), "a"),
    ],
)
def test_parse_option__rows(answer, options, letter):
    assert parse_option(answer, options) == letter


def test_mmvp_scores__pairs_and_questions():
    right = mmvp_scores("aabaab", "aabbba", [1, 1, 2, 2, 3, 3])
    assert right["pair_acc"] == pytest.approx(1 / 3)
    assert right["question_acc"] == 0.5 and right["unparsed"] == 0
    generator = np.random.default_rng(0)
    answers = generator.choice(list("ab"), 200).tolist()
    letters = list("ab") * 100
    for place in generator.choice(200, 40, replace=False):
        letters[place] = None
    pairs = [place // 2 for place in range(200)]
    wanted = [
        letters[k] == answers[k] and letters[k + 1] == answers[k + 1]
        for k in range(0, 200, 2)
    ]
    order = generator.permutation(200)
    columns = [[column[k] for k in order] for column in (letters, answers, pairs)]
    found = mmvp_scores(*columns)
    assert found["pair_acc"] == np.mean(wanted) and found["count"] == 200
    assert found["unparsed"] == letters.count(None) / 200
    assert 0 <= found["pair_acc_low"] < found["pair_acc"] < found["pair_acc_high"] < 1
    with pytest.raises(ValueError, match="1 letters given, 2 are needed"):
        mmvp_scores("a", "ab", [1, 1])


class Words:
    """Answers from a table, in place of a model; keeps what it was asked."""

    def __init__(self, answers):
        self.answers, self.turns = iter(answers), []

    def generate(self, turns, max_new_tokens):
        self.turns += turns
        return [next(self.answers) for _ in turns]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mmvp(tmp_path_factory.mktemp("mmvp") / "root")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return MMVPDataset(write_mmvp(tmp_path_factory.mktemp("mmvp") / "few", 8))


def test_mmvp__asks_and_grades_all_questions(root):
    words = ["(a)", "Closed, or shut"] * 150
    released = mmvp(Words(words), root, batch_size=7)
    assert released.scores["pair_acc"] == released.scores["question_acc"] == 1
    again = mmvp(Words(words), MMVPDataset(root, corrected=True))
    assert again.scores["pair_acc"] == 148 / 150  # four labels are swapped
    assert again.scores["question_acc"] == 296 / 300
    assert released.labels.startswith("released") and released.method == "generate"
    assert released.answers == words and released.letters == ["a", "b"] * 150
    model = Words(["b", None] * 150)
    corrected = mmvp(model, MMVPDataset(root, corrected=True), batch_size=300)
    assert corrected.labels.startswith("corrected")
    # The corrected rows are the only pairs that begin with (b).
    assert corrected.scores["question_acc"] == 2 / 300
    assert corrected.scores["pair_acc"] == 0 and corrected.scores["unparsed"] == 0.5
    turn = model.turns[0]
    assert turn.instruction == "" and len(turn.images) == 1
    assert turn.question == "Is the wing open? (a) Open (b) Closed, or shut"


@pytest.fixture(scope="module")
def chat():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_chat, "WORDS", (*tiny_chat.WORDS, "(a)", "(b)"))
        return ChatModel(tiny_chat.model(), tiny_chat.processor())


@pytest.mark.parametrize("method", ["generate", "log-probability"])
def test_mmvp__batches_of_a_tiny_model_are_its_single_answers(chat, few, method):
    options = {"method": method, "max_new_tokens": 4}
    alone = mmvp(chat, few, batch_size=1, **options)
    together = mmvp(chat, few, batch_size=5, **options)
    assert alone == together and alone.method == method
    if method == "log-probability":
        assert alone.scores["unparsed"] == 0 and alone.answers == []
    else:
        assert all(isinstance(text, str) for text in alone.answers)


def test_mmvp__log_probabilities_choose_the_likelier_option(chat, few):
    found = mmvp(chat, few, method="log-probability").letters
    for place, letter in enumerate(found):
        turn = Turn("", [few[place].image], few[place].prompt)
        scores = [chat.log_probs([turn], [[text]])[0] for text in ("(a)", "(b)")]
        assert letter == "ab"[int(scores[1] > scores[0])]


def test_mmvp__refuses_another_method(few):
    with pytest.raises(ValueError, match="method='judge'"):
        mmvp(Words([]), few, method="judge")
    with pytest.raises(ValueError, match="batch_size=0"):
        mmvp(Words([]), few, batch_size=0)
    with pytest.raises(FileNotFoundError):
        mmvp(Words([]), "nowhere")


def test_scores__take_ids_of_any_kind_and_only_the_letters_a_and_b():
    scores = mmvp_scores("aaab", "aabb", torch.tensor([1, 1, 2, 2]))
    assert scores["pair_acc"] == 0.5
    for letters, answers in (("AAAB", "aabb"), (["", "a"], "ab"), ("ab", ["a", "(b)"])):
        with pytest.raises(ValueError, match="are unknown; use some of 'a', 'b'"):
            mmvp_scores(letters, answers, [k // 2 for k in range(len(letters))])
    with pytest.raises(ValueError, match="no answers"):
        mmvp_scores([], [], [])
