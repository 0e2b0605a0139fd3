"""Rules of short answers: the released ones row by row, and the normalised ones."""

import pytest

from avalanche_clip.evaluation.functional import (
    dimension_averages,
    prior_baselines,
    short_answer_parsed,
    short_answer_score,
)
from tests.refused import refused

TITLE = "Attention Is All You Need"
OFFICIAL = [
    ("number", "There are 3 dogs. No, 4.", 3, 1),
    ("number", "Three", 3, 1),
    ("number", "Three dogs", 3, 0),
    ("number", "-3", 3, 1),
    ("number", "3.5", 3, 1),
    ("number", "12 and 3", 3, 0),
    ("number", "1,000", 1000, 0),
    ("number", "", 0, 0),
    ("number", "Answer:\n4", 4, 0),
    ("number", "c = 29", 29, 1),
    ("number", "21 + 8 = 29", 29, 0),
    ("number", "third", "3", 1),
    ("number", "zero", 0, 1),
    ("number", "tenth.", 10, 1),
    ("number", "zeroth", 0, 0),
    ("number", "eleven", 11, 0),
    ("number", "ten \nor so", 10, 0),  # not stripped again behind the cut
    ("number", "007", 7, 0),
    ("exact", "A. because", "A", 1),
    ("exact", "(A)", "A", 0),
    ("exact", "A)", "A", 0),
    ("exact", "a", "A", 1),
    ("exact", "\nB", "B", 1),
    ("exact", ".A", "A", 0),
    ("exact", "A.\nB", "A", 0),  # a line feed comes first
    ("exact", TITLE, TITLE.lower(), 1),
    ("exact", "GPT-3.5 study", "GPT-3.5 study", 0),
    ("exact", f'"{TITLE}"', TITLE, 0),
    ("yes-no", "", "No", 1),
    ("yes-no", "Maybe", "No", 1),
    ("yes-no", "Eyes are blue", "Yes", 1),
    ("yes-no", "No. Well yes", "Yes", 0),
    ("yes-no", "No. Well yes", "No", 1),
    ("yes-no", "YES!", "yes", 1),
    ("yes-no", "yesterday", "No", 0),
    ("contains", "Paris, France. Nice", "Paris", 1),
    ("contains", "not in paris", "Paris", 1),
    ("contains", "Nope", "No", 1),
    ("contains", "I. Paris", "Paris", 0),
    ("contains", ".Paris", "Paris", 1),
    ("contains", "Yes, Paris", "yes", 1),
    ("contains", "comparison", "Paris", 1),
]
NORMALISED = [
    ("number", "3.5", 3, 0),
    ("number", "3.5", "3.5", 1),
    ("number", "-3", 3, 0),
    ("number", "3.0", 3, 1),
    ("number", "007", 7, 1),
    ("number", '"Three"', 3, 1),
    ("number", "c = 29. So", 29, 1),
    ("number", "", 0, 0),
    ("exact", "(A)", "A", 1),
    ("exact", "A)", "A", 1),
    ("exact", "[b] it is", "B", 1),
    ("exact", "The answer is (C)", "C", 1),
    ("exact", "(A) or (C)", "C", 0),
    ("exact", "A: a dog", "A", 1),
    ("exact", "a dog", "A", 0),
    ("exact", "A.", "A", 1),
    ("exact", "GPT-3.5 study", "GPT-3.5 study", 1),
    ("exact", f'"{TITLE}."', TITLE, 1),
    ("yes-no", "", "No", 0),
    ("yes-no", "Maybe", "No", 0),
    ("yes-no", "Eyes are blue", "Yes", 0),
    ("yes-no", "Yes and no", "Yes", 1),
    ("yes-no", "Yes and no", "No", 0),
    ("yes-no", "I know: (no)", "No", 1),
    ("contains", "comparison", "Paris", 0),
    ("contains", "(Paris)", "Paris", 1),
    ("contains", "St.Paul", "St.Paul", 1),
    ("contains", "Nope", "No", 0),
]
DIMENSIONS = {
    "Knowledge": ("food", "sightseeing"),
    "Reasoning": ("codeu", "plot_code", "analogy", "3d_scene"),
    "Perception": ("image_jigsaw", "count", "attribute"),
    "Multi-hop": ("visual_chain", "arxiv"),
}
HITS = {
    **{"food": 1 / 2, "sightseeing": 3 / 4, "codeu": 1, "plot_code": 0},
    **{"analogy": 2 / 4, "3d_scene": 1, "image_jigsaw": 1 / 4, "count": 1},
    **{"attribute": 3 / 4, "visual_chain": 0, "arxiv": 1 / 2},
}


@pytest.mark.parametrize(("rule", "prediction", "gold", "score"), OFFICIAL)
def test_official(rule, prediction, gold, score):
    assert short_answer_score(prediction, gold, rule) is bool(score)


@pytest.mark.parametrize(("rule", "prediction", "gold", "score"), NORMALISED)
def test_normalised(rule, prediction, gold, score):
    found = short_answer_score(prediction, gold, rule, protocol="normalised")
    assert found is bool(score)


@pytest.mark.parametrize(
    ("prediction", "rule", "letters", "official", "normalised"),
    [
        ("Maybe", "yes-no", "", False, False),
        ("I know", "yes-no", "", True, False),
        ("two", "number", "", True, True),
        ("two dogs", "number", "", False, False),
        ("(B)", "exact", "ABCDE", False, True),
        ("b", "exact", "ABCDE", True, True),
        ("F", "exact", "ABCDE", False, False),
        ("AB", "exact", "ABCDE", False, False),
        ("  ", "exact", "", False, False),
        ("a title", "exact", "", True, True),
        ("", "contains", "", False, False),
    ],
)
def test_parsed(prediction, rule, letters, official, normalised):
    for protocol, expected in {"official": official, "normalised": normalised}.items():
        found = short_answer_parsed(prediction, rule, one_of=letters, protocol=protocol)
        assert found is expected


def test_baselines__are_those_of_the_protocol():
    golds = ["No", "yes", "no"]
    assert prior_baselines(golds, "yes-no") == pytest.approx(
        {"most_frequent": 2 / 3, "always_yes": 1 / 3, "always_no": 2 / 3}
    )
    mixed = ["Rome", "yes", "Rome", "Nice"]
    assert prior_baselines(mixed, "contains") == {
        "most_frequent": 0.5,
        "always_yes": 0.25,
        "always_no": 0.0,
    }
    assert prior_baselines(["B", "A", "B", "A"], "exact") == {"most_frequent": 0.5}
    assert prior_baselines([12, 3, 12], "number")["most_frequent"] == 2 / 3
    refused("golds", prior_baselines, [], "exact")


def test_averages__golden_table():
    found = dimension_averages(HITS, DIMENSIONS)
    values = {name: round(entry["acc"], 6) for name, entry in found.items()}
    assert values == {
        "Knowledge": 0.625,
        "Reasoning": 0.625,
        "Perception": 0.666667,
        "Multi-hop": 0.25,
        "overall": 0.541667,
    }
    assert {e.get("partial", 0.0) for e in found.values()} == {0.0}


PUBLISHED = [
    ("LLaVA-v1.5-7B", 48.86, 27.14, 37.89, 0.00, 28.47),
    ("LLaVA-Next-7B", 48.40, 29.35, 41.56, 0.00, 29.83),
    # printed as 29.38, which does not follow from the four values
    ("LLaVA-Next-13B", 48.44, 29.85, 40.22, 0.00, 29.63),
    ("Qwen-VL-Chat", 19.23, 13.87, 24.44, 0.00, 14.38),
    ("InternLM-XComposer2", 54.74, 37.23, 37.22, 0.81, 32.50),
    ("VILA-2.7B", 53.27, 31.01, 48.33, 0.00, 33.15),
    ("VILA-7B", 63.66, 35.31, 47.11, 0.00, 36.52),
    ("Emu2-Chat", 40.40, 24.51, 44.00, 0.00, 27.23),
    ("IDEFICS1-9B", 45.89, 23.49, 36.89, 0.00, 26.57),
    ("IDEFICS2-8B", 61.26, 31.83, 39.00, 0.00, 33.02),
    ("Mantis-IDEFICS2", 58.73, 33.78, 46.78, 0.00, 34.82),
    ("LongVA-7B", 66.63, 35.31, 48.89, 0.00, 37.71),
    ("Phi-3-Vision", 60.19, 34.49, 46.22, 0.00, 35.23),
    ("GPT-4V", 75.66, 50.59, 49.67, 36.29, 53.05),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_averages__published_table(row):
    _, *scores, average = row
    names = ("Reasoning", "Knowledge", "Perception", "Multi-hop")
    each = dict(zip(names, scores, strict=True))
    found = dimension_averages(each, {name: [name] for name in names})
    assert found["overall"]["acc"] == pytest.approx(average, abs=0.00501)


def test_averages__a_missing_subset_makes_its_dimension_partial():
    scores = {k: v for k, v in HITS.items() if k not in ("food", "visual_chain")}
    found = dimension_averages(scores, DIMENSIONS)
    assert found["Knowledge"] == {"acc": 0.75, "partial": 1.0}
    assert found["Multi-hop"] == {"acc": 0.5, "partial": 1.0}
    assert found["Reasoning"]["partial"] == 0.0
    assert "overall" not in found
    alone = dimension_averages({"arxiv": 1.0}, DIMENSIONS)
    assert alone == {"Multi-hop": {"acc": 1.0, "partial": 1.0}}
    assert dimension_averages({}, DIMENSIONS) == {} == dimension_averages({"a": 1}, {})


def test_wrong_settings__are_refused():
    refused("rule='exakt'.*mean 'exact'", short_answer_score, "a", "a", "exakt")
    refused("protocol", short_answer_score, "a", "a", "exact", protocol="loose")
    refused("must be yes or no", short_answer_score, "yes", "Paris", "yes-no")
