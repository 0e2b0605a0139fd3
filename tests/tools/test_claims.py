"""The table of claims: its rule, what it reads, and the page."""

import json
import math
import random
import re
import statistics
from pathlib import Path

import pytest

from avalanche_clip.common.files import write_json
from tests.scripts import load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return load_script("tools/claims.py")


def figures_at(script, tmp_path, methods, **facts):
    """Figures of a study ``alignment``, of seeds 0, 1, 2 unless said otherwise."""
    facts = {"pretrained": "icons", "seeds": [0, 1, 2], **facts}
    folder = tmp_path / script.STUDIES["alignment"].folder
    folder.mkdir(parents=True, exist_ok=True)
    base = {"old": [31.6], "old+": [None]}  # as studies write the untrained model
    content = {"facts": facts, "methods": {"base": base, **methods}}
    write_json(folder / "figures.json", content, checksum=True)
    return script.Figures(tmp_path)


def check(script, **options):
    settings = {"study": "alignment", "figure": "old", "method": "a", "other": "b"}
    return script.Check(**{**settings, **options})


# ------------------------------------------------------------------------- rule
def test_interval__is_that_of_a_paired_t_test(script):
    # by hand: mean 2, deviation 1, 4.303 / sqrt(3)
    low, high = script.interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(0)
    for n in range(3, 11):
        values = [draw.gauss(1, 2) for _ in range(n)]
        deviation = statistics.stdev(values) / math.sqrt(n)
        mean = statistics.mean(values)
        expected = stats.t.interval(0.95, n - 1, loc=mean, scale=deviation)
        assert script.interval(values) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "ends, wanted, margin, expected",
    [
        ((0.1, 2), "above", 0, "yes"),
        ((-0.1, 2), "above", 0, "open"),
        ((-2, -0.1), "above", 0, "no"),
        ((0, 0), "above", 0, "open"),
        ((-0.9, 2), "above", 1, "yes"),
        ((-1.1, 2), "above", 1, "open"),
        ((-3, -1.1), "above", 1, "no"),
        ((-2, -0.1), "below", 0, "yes"),
        ((-2, 0.1), "below", 0, "open"),
        ((0.1, 2), "below", 0, "no"),
        ((0.1, 0.9), "below", 1, "yes"),
    ],
)
def test_outcome__follows_from_where_the_interval_lies(
    script, ends, wanted, margin, expected
):
    assert script.outcome(ends, wanted, margin) == expected


@pytest.mark.parametrize(
    "outcomes, expected",
    [
        (["yes"], "**holds**"),
        (["yes", "yes"], "**holds**"),
        (["open"], "**does not hold here**: not beyond the spread of seeds"),
        (["no"], "**does not hold here**: the other way round"),
        (["yes", "open"], "**holds partly**: 2 not beyond the spread of seeds"),
        (["no", "yes", "no"], "**holds partly**: 1, 3 the other way round"),
        (
            ["open", "no"],
            "**does not hold here**: 2 the other way round; 1 not beyond the spread "
            "of seeds",
        ),
        (["yes", ""], "not measured"),
        (["", "no"], "not measured"),
    ],
)
def test_verdict__follows_from_the_outcomes(script, outcomes, expected):
    assert script.verdict([script.Found(o) for o in outcomes]) == expected


# ---------------------------------------------------------------------- reading
def test_look__compares_seed_by_seed(script, tmp_path):
    # far apart between seeds, but always one better
    methods = {"a": {"old": [1, 21, 42]}, "b": {"old": [0, 20, 40]}}
    figures = figures_at(script, tmp_path, methods)
    found = script.look(check(script), figures)
    assert (found.left, found.right) == ((1, 21, 42), (0, 20, 40))
    assert found.interval == pytest.approx(script.interval([1, 1, 2]))
    assert found.outcome == "open"
    assert script.look(check(script, margin=1), figures).outcome == "yes"
    assert script.look(check(script, wanted="below"), figures).outcome == "open"
    alone = script.look(check(script, other=""), figures)
    assert alone.right == (0, 0, 0) and alone.left == (1, 21, 42)
    said = script.said(check(script), found)
    assert said == "old: a 21.3 ± 20.5, b 20.0 ± 20.0: +1.3 [−0.1, +2.8]"


@pytest.mark.parametrize(
    "methods, facts, why",
    [
        ({"a": {"old": [1, 2, 3]}}, {}, ""),
        ({"a": {"new": [1, 2, 3]}, "b": {"old": [1, 2, 3]}}, {}, ""),
        ({"a": {"old": [1, 2]}, "b": {"old": [1, 2]}}, {"seeds": [0, 1]}, "2 of 3"),
        ({"a": {"old": [1, 2, None]}, "b": {"old": [1, 2, 3]}}, {}, "2 of 3 seeds"),
        ({"a": {"old": [1, 2, 3]}, "b": {"old": [1, None, None]}}, {}, "1 of 3 seeds"),
        (
            {"a": {"old": [1, 2, 3]}, "b": {"old": [1, 2, 3]}},
            {"pretrained": "/tmp/mine.safetensors"},
            "from other weights: mine.safetensors",
        ),
        (
            {"a": {"old": [1, 2, 3]}, "b": {"old": [1, 2, 3]}},
            {"pretrained": None},
            "from other weights: random",
        ),
        (
            {"a": {"old": [1, 2, 3]}, "b": {"old": [1, 2, 3]}},
            {"validation": True},
            "--validation",
        ),
    ],
)
def test_look__without_three_seeds_of_both_has_no_figure(
    script, tmp_path, methods, facts, why
):
    found = script.look(check(script), figures_at(script, tmp_path, methods, **facts))
    assert not found.outcome and not found.left and why in found.why
    said = script.said(check(script), found)
    assert "not measured" in said and not re.search(r"\d\.\d", said)


def test_figures__that_were_changed_by_hand_are_refused(script, tmp_path):
    figures_at(script, tmp_path, {"a": {"old": [1, 2, 3]}})
    path = tmp_path / script.STUDIES["alignment"].folder / "figures.json"
    content = json.loads(path.read_text())
    content["methods"]["a"]["old"][0] = 9
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="run the study again"):
        script.look(check(script), script.Figures(tmp_path))


def test_time__is_read_from_the_runs_themselves(script, tmp_path):
    study = script.STUDIES["time"]
    for method, level in (("oracle", 0.5), ("cumulative-all", 0.4)):
        for seed in (0, 1, 2):
            results = {
                "seed": seed,
                "config": {"pretrained": "icons"},
                "summary": {"test": {"mean_R@1": {"in_domain": level + seed / 100}}},
                "macs": {"macs": [{"train": 10}], "total_macs": 100 * level},
                "matrices": {"test": {"mean_R@1": {"E": [[level]], "before": [0]}}},
            }
            folder = tmp_path / study.folder / method / f"seed_{seed}"
            folder.mkdir(parents=True)
            write_json(folder / "results.json", results, checksum=True)
    figures = script.Figures(tmp_path)
    options = {"study": "time", "method": "cumulative-all", "other": "oracle"}
    found = script.look(check(script, figure="in_domain", **options), figures)
    assert found.left == pytest.approx((40, 41, 42))
    assert found.interval == pytest.approx((-10, -10)) and found.outcome == "no"
    cost = script.look(check(script, figure="cost", wanted="below", **options), figures)
    assert (cost.left, cost.right) == ((4, 4, 4), (5, 5, 5)) and cost.outcome == "yes"
    missing = check(script, figure="backward", **options)
    assert not script.look(missing, figures).outcome


# ------------------------------------------------------------------------- page
def test_claims__name_known_studies_and_papers(script):
    assert {claim.paper for claim in script.CLAIMS} == set(script.PAPERS)
    used = {check.study for claim in script.CLAIMS for check in claim.checks}
    assert used == set(script.STUDIES)
    for claim in script.CLAIMS:
        assert claim.checks and claim.source and claim.statement.endswith(".")
        for one in claim.checks:
            assert one.wanted in ("above", "below") and one.margin >= 0
            assert one.method and one.method != one.other


FILES = {
    "time": ("tic_emoji", ()),
    "alignment": ("alignment_methods", ("alignment_study",)),
    "domains": ("multi_domain_emoji", ("domain_figures",)),
    "domains II": ("multi_domain_emoji", ("domain_figures",)),
    "languages": ("languages_emoji", ("language_study",)),
}


def test_claims__name_methods_and_figures_that_the_studies_have(script):
    for claim in script.CLAIMS:
        for one in claim.checks:
            if one.study not in FILES:
                continue
            name, others = FILES[one.study]
            study = load_script(f"experiments/{name}.py")
            known = {*study.METHODS, *getattr(study, "SUMS", ())}
            views = [v.label for v in getattr(study, "VIEWS", {}).values() if v.label]
            known |= {f"{m}{label}" for m in known for label in views}
            assert {one.method, one.other or one.method} <= known, one
            text = "".join(
                (ROOT / "experiments" / f"{file}.py").read_text() for file in others
            )
            figure = one.figure.removesuffix("+")
            assert not others or f'"{figure}"' in text, one


def test_page__has_a_row_per_claim_and_no_number_that_was_not_measured(
    script, tmp_path
):
    text = "\n".join(script.page(script.Figures(tmp_path)))
    rows = text.split("   * - ")[2:]
    assert len(rows) == len(script.CLAIMS)
    for row, claim in zip(rows, script.CLAIMS, strict=True):
        assert row.startswith(claim.statement) and claim.measure in row
        verdict = re.split(r"\n     - ", row)[-1].split("\n")[0]
        assert verdict == "not measured"
        assert "±" not in row.partition("\n     - ")[2]
    claim = script.Claim("Mod-X", "It is.", "here", "old", (check(script),))
    methods = {"a": {"old": [5, 6, 7]}, "b": {"old": [1, 2, 3]}}
    figures = figures_at(script, tmp_path, methods)
    text = "\n".join(script.page(figures, [claim]))
    assert "old: a 6.0 ± 1.0, b 2.0 ± 1.0: +4.0 [+4.0, +4.0]" in text
    assert "     - **holds**" in text


def test_page__of_the_documentation_has_these_claims(script):
    page = (ROOT / "docs" / "results" / "claims.rst").read_text(encoding="utf-8")
    for text in script.page(script.Figures(ROOT / "nowhere")):
        lines = [x for x in text.splitlines() if not re.search("not measured", x)]
        assert all(line in page for line in lines), "run the command of the script"


def test_figures__whose_values_are_of_other_seeds_are_refused(script, tmp_path):
    methods = {"a": {"old": [1, 2, 3]}, "b": {"old": [1, 2]}}
    figures = figures_at(script, tmp_path, methods)
    with pytest.raises(ValueError, match=r"'b' has 2 values of 'old' for 3 seeds"):
        script.look(check(script), figures)


def test_why__is_said_where_a_claim_does_not_hold_and_nowhere_else(script, tmp_path):
    figures = figures_at(
        script, tmp_path, {"a": {"old": [1.0, 2.0, 3.0]}, "b": {"old": [8.0, 9.0, 9.0]}}
    )

    def cell(*checks):
        claim = script.Claim("P", "S", "here", "m", checks, "It is small.")
        return script.row(claim, figures)[-1]

    assert cell(check(script)).endswith("It is small.")
    assert "small" not in cell(check(script, wanted="below"))
    assert "small" not in cell(check(script, method="c"))
