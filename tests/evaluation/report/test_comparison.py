import json
import re

import numpy as np
import pytest

from avalanche_clip.evaluation.functional import continual_summary, time_transfer
from avalanche_clip.evaluation.report.comparison import text_table, write_comparison
from avalanche_clip.evaluation.report.html import file_name
from tests.evaluation.report.test_page import Page, suite_rows
from tests.evaluation.results import make_results

METHODS = ("Sequential", "Oracle")


def runs(seeds=3):
    return [make_results(method, seed) for method in METHODS for seed in range(seeds)]


def test_comparison__means_and_deviations_over_seeds(tmp_path):
    write_comparison(tmp_path, runs())
    stored = json.loads((tmp_path / "comparison.json").read_text())
    values = []
    for seed in range(3):
        parts = make_results("Oracle", seed)["matrices"]["test"]["mean_R@1"]
        summary = time_transfer(parts["E"])
        values.append(summary | continual_summary(parts["E"], parts["before"]))
    for key in values[0]:
        numbers = [value[key] for value in values]
        found = stored["test"]["mean_R@1"]["Oracle"][key]
        assert found["runs"] == pytest.approx(numbers)
        assert found["mean"] == pytest.approx(np.mean(numbers))
        assert found["deviation"] == pytest.approx(np.std(numbers, ddof=1))


def test_comparison__page_is_one_file_with_all_methods(tmp_path):
    page = Page(write_comparison(tmp_path / "new", runs()))
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "2 methods, 3 seeds each" in page.text
    assert "0, 1, 2" in page.text and "±" in page.text
    assert "0123456789ab (changed)" in page.text
    assert "median_rank" not in page.text


def test_comparison__names_that_files_cannot_tell_apart(tmp_path):
    assert file_name("方法 1") == "方法_1"
    runs = [make_results(name, tests=2) for name in ("a+b", "a b")]
    page = Page(write_comparison(tmp_path, runs))
    assert len(list(tmp_path.glob("matrix_*.png"))) == 2
    assert len(set(page.sources)) == len(page.sources)


def test_comparison__one_seed_shows_no_spread(tmp_path):
    page = Page(write_comparison(tmp_path, runs(seeds=1)))
    assert "±" not in page.text.split("Sequential", 1)[1]
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert stored["test"]["mean_R@1"]["Oracle"]["in_domain"]["deviation"] is None


def test_comparison__takes_folders_and_files(tmp_path):
    sources = []
    for number, results in enumerate(runs(seeds=1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results))
        sources.append(folder if number else folder / "results.json")
    page = write_comparison(tmp_path / "a", sources, metric="image_to_text_R@1")
    same = write_comparison(
        tmp_path / "b", runs(seeds=1), metric="image_to_text_R@1"
    ).read_text()
    assert page.read_text() == same


def test_comparison__different_data_are_pointed_out(tmp_path):
    other = make_results("Oracle", 0)
    other["data"] = dict(other["data"], hash="zzz")
    page = Page(write_comparison(tmp_path, [make_results(), other]))
    assert "different data" in page.text


def test_comparison__values_that_a_method_lacks_are_dashes(tmp_path):
    results = runs(seeds=1)
    for result, space in zip(results, ("seen", "own"), strict=True):
        result["data"] = {**result["data"], "protocol": "class_incremental"}
        result["config"] = {"eval_label_space": space}
    page = Page(write_comparison(tmp_path, results))
    assert "incremental last" in page.text and "– –" in page.text
    stored = json.loads((tmp_path / "comparison.json").read_text())["test"]["mean_R@1"]
    assert stored["Oracle"]["incremental_last"] == {
        "mean": None,
        "deviation": None,
        "runs": [None],
    }
    assert stored["Sequential"]["incremental_last"]["mean"] > 0


def test_comparison__of_runs_that_were_evaluated_at_points(tmp_path):
    points = {"at": [0, 2], "steps": [0, 2], "samples": [10, 60]}
    both = [make_results(m, steps=2, evaluations=points) for m in METHODS]
    page = Page(write_comparison(tmp_path, both))
    # Lines, bars, the budget, and two matrices.
    assert len(page.sources) == 5 and "method before final average" in page.text
    other = make_results("B", steps=2, evaluations={**points, "steps": [1, 2]})
    with pytest.raises(ValueError, match="at steps .*same evaluate_at"):
        write_comparison(tmp_path, [*both, other])


@pytest.mark.parametrize(
    "results, options, message",
    [
        ([], {}, "no results"),
        ([make_results(), make_results()], {}, "seeds"),
        ([make_results(), make_results("B", steps=2)], {}, "shapes"),
        ([make_results(), make_results("B")], {"metric": "acc"}, "metric='acc'"),
    ],
)
def test_comparison__refuses_what_does_not_fit(tmp_path, results, options, message):
    with pytest.raises(ValueError, match=message):
        write_comparison(tmp_path / "new", results, **options)
    assert not (tmp_path / "new").exists()


def test_text_table__one_seed_missing_figures_and_wide_names():
    nan = float("nan")
    lines = {
        "a": [{"x": 1.25, "seventeen letters": nan}],
        "a longer name": [{"x": 1.0, "seventeen letters": 2.0}] * 2,
    }
    head, rule, first, second = text_table(lines).split("\n")
    assert len(head) == len(rule) == len(first) == len(second)
    assert head.split() == ["method", "x", "seventeen", "lette"]
    assert first.split() == ["a", "1.2", "-"]
    assert second.split() == ["a", "longer", "name", "1.0", "±0.0", "2.0", "±0.0"]


def test_comparison__suites_that_all_runs_have(tmp_path):
    pairs = {"pairs": {"share": 0.5, "born_count": 2.0}}
    sources = []
    for run in runs(2):
        rows = suite_rows()
        rows["2"]["emoji <b>"]["acc1"] = 0.1 * run["seed"] + 0.2
        own = {"only here": rows} if run["method"] == "Oracle" else {}
        names = ("before", "0", "1", "2")
        blind = {"pairs": {"blind_share": 0.5 - 0.4 * (run["method"] == "Oracle")}}
        suites = {"zero-shot": rows, "blind": dict.fromkeys(names, pairs), **own}
        suites["far"] = dict.fromkeys(names, blind)
        sources.append(run | {"suites": suites})
    page = Page(write_comparison(tmp_path, sources))
    assert "only here" not in page.text
    cell = f"{25.0} ± {100 * np.std([0.2, 0.3], ddof=1):.1f}"
    assert f"zero-shot: acc1 method emoji <b> Sequential {cell} Oracle" in page.text
    assert "zero-shot: mean_R@1" in page.text
    assert "blind: share method share Sequential 50.0 ± 0.0" in page.text
    assert "method born_count Sequential 2 ± 0" in page.text
    # more pairs that are not told apart are no better result
    assert "50.0 ± 0.0" in page.text and "50.0 ± 0.0" not in best_cells(
        tmp_path / "comparison.html"
    )
    assert len(list(tmp_path.glob("suite_*.png"))) == 5
    # Figures of runs of other steps cannot share an axis.
    sources[0]["data"] = sources[0]["data"] | {"labels": {"train": list("abc")}}
    Page(write_comparison(tmp_path / "other", sources))
    assert not list((tmp_path / "other").glob("suite_*.png"))


def shifted(method, seed, value):
    """A run whose main metric is this everywhere."""
    run = make_results(method, seed)
    parts = run["matrices"]["test"]["mean_R@1"]
    run["matrices"]["test"]["mean_R@1"] = {
        "before": parts["before"],
        "E": [[value] * 3] * 3,
    }
    return run


def best_cells(path):
    return re.findall(r'<td class="best">([^<]*)', path.read_text())


def test_comparison__no_best_within_the_spread(tmp_path):
    far = [
        shifted(m, s, v + 0.01 * s) for m, v in (("A", 0.1), ("B", 0.9)) for s in (0, 1)
    ]
    cells = best_cells(write_comparison(tmp_path, far, metric="mean_R@1"))
    assert cells.count("90.5 ± 0.7") >= 3 and "10.5 ± 0.7" not in cells
    near = [
        shifted(m, s, v + 0.1 * s) for m, v in (("A", 0.5), ("B", 0.6)) for s in (0, 1)
    ]
    path = write_comparison(tmp_path, near)
    assert not [c for c in best_cells(path) if c.startswith(("55.", "65."))]
    text = Page(path).text
    assert "B is highest at the end (65.0 ± 7.1 %), within the spread of A" in text
    single = [shifted(m, 0, v) for m, v in (("A", 0.1), ("B", 0.9))]
    path = write_comparison(tmp_path, single)
    assert not best_cells(path) and "one seed each" in Page(path).text


def test_comparison__a_reference_does_not_compete(tmp_path):
    joint = [shifted("All at once", s, 0.95) for s in (0, 1)]
    for run in joint:
        run["config"] = {"strategy": "Joint"}
        for parts in run["matrices"]["test"].values():
            parts["E"] = parts["E"][:1]
    far = [
        shifted(m, s, v + 0.01 * s) for m, v in (("A", 0.1), ("B", 0.9)) for s in (0, 1)
    ]
    path = write_comparison(tmp_path, [*far, *joint])
    text = Page(path).text
    assert "B is highest at the end" in text
    assert "All at once, the reference, reaches 95.0 ± 0.0 %." in text
    assert "average accuracy" not in text and " final average " not in text
    assert "All at once (reference)" in text and "A (reference)" not in text
    assert "90.5 ± 0.7" in best_cells(path) and "95.0 ± 0.0" not in best_cells(path)


def test_comparison__references_on_one_test_set(tmp_path):
    runs = [make_results("Sequential", tests=1)]
    for name, facts in (
        ("Union", {"joint": True}),  # any strategy on merged steps
        ("Names", {"config": {"strategy": "ClassNameJoint"}}),
    ):
        runs.append(make_results(name, tests=1, **facts))
        for parts in runs[-1]["matrices"]["test"].values():
            parts["E"] = [[1.0]]
    text = Page(write_comparison(tmp_path, runs)).text
    for name in ("Union", "Names"):
        assert f"{name}, the reference, reaches 100.0 %." in text
    assert list(tmp_path.glob("over_time_*.png"))


def test_comparison__all_methods_compete_on_a_stream_with_one_row(tmp_path):
    runs = [shifted(m, s, v) for m, v in (("A", 0.1), ("B", 0.9)) for s in (0, 1)]
    for run in runs:
        for parts in run["matrices"]["test"].values():
            parts["E"] = parts["E"][-1:]
    text = Page(write_comparison(tmp_path, runs)).text
    assert "B is highest at the end" in text and "reference" not in text


def test_comparison__many_test_sets_are_rows_and_few_are_columns(tmp_path):
    labels = [f"set {n}" for n in range(12)]
    both = [make_results(m, tests=12) for m in ("A", "B")]
    for run in both:
        run["data"]["labels"]["test"] = labels
        run["data"]["counts"]["test"] = list(range(12))
        run["chance"] = {"test": {"mean_R@1": [0.01 * n for n in range(12)]}}
        run["matrices"]["test"]["mean_R@1"] = {
            "before": [0.5] * 12,
            "E": [[0.02 * n for n in range(12)]],
        }
    text = Page(write_comparison(tmp_path, both)).text
    assert "test set items chance before A B set 0 0 0.0 50.0 0.0 0.0 set 1" in text
    assert "set 11 11 11.0 50.0 22.0 22.0" in text


def test_comparison__settings_that_differ_are_a_table(tmp_path):
    one, other = make_results("A"), make_results("B")
    other["config"] = {"train_mb_size": 64, "plugins": [{"class": "Patching<a>"}]}
    other["config"]["plugins"].append({"class": "Replay", "mem_size": 7})
    text = Page(write_comparison(tmp_path, [one, other])).text
    table = text[text.index("Settings that differ") : text.index(" Runs ")]
    assert "setting A B train_mb_size 128 64" in table
    assert "plugin Replay.mem_size – 7" in table
    assert "Patching" not in table and "python" not in table
    same = write_comparison(tmp_path, [one, make_results("B")])
    assert "Settings that differ" not in Page(same).text


def test_comparison__a_stream_with_one_test_set_has_values(tmp_path):
    both = [make_results(m, s, tests=1) for m in METHODS for s in (0, 1)]
    path = write_comparison(tmp_path, both)
    assert "method before final average Sequential" in Page(path).text
    assert not re.search(r"<tr><th>[^<]*</th>\s*</tr>", path.read_text())


def test_comparison__test_items_chance_and_before_stand_beside_the_scores(tmp_path):
    both = [make_results(m, s) for m in METHODS for s in (0, 1)]
    for run in both:
        run["chance"] = {"test": {"mean_R@1": [0.1, 0.2, 0.3]}}
        run["matrices"]["test"]["mean_R@1"]["before"] = [0.4, 0.5, 0.6]
    text = Page(write_comparison(tmp_path, both)).text
    assert "test items 1 2 3 chance 10.0 20.0 30.0 before 40.0 50.0 60.0" in text
