import json
import math
import os
import re
from html.parser import HTMLParser
from unittest import mock

import pytest
from PIL import Image

from avalanche_clip.common.files import write_json
from avalanche_clip.evaluation.report.page import write_report
from tests.damage import PAGE, POINTER
from tests.evaluation.results import make_results

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that all tags are closed and collects text and sources."""

    def __init__(self, path):
        super().__init__()
        self.stack, self.sources, self.words = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.stack == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.sources += [v for k, v in attrs.items() if k in ("src", "href")]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.words.append(data)


def write(folder, results):
    (folder / "results.json").write_text(json.dumps(results))
    return Page(write_report(folder))


def test_report__is_one_file_with_everything_in_it(tmp_path):
    page = write(tmp_path, make_results())
    assert len(page.sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for word in ("Sequential", "abc123", "0123456789abcdef", "3.11", "in domain"):
        assert word in page.text
    assert "plugins[0].class Patching<a>" in page.text
    assert "2014 & <b>" in page.text
    assert "train_mb_size 128" in page.text
    assert "9 GMAC" in page.text and "4.5 s" in page.text


def test_report__rows_are_named_after_the_training_steps(tmp_path):
    results = make_results(steps=1, tests=3)
    results["data"]["labels"]["train"] = ["2010..2020"]
    page = write(tmp_path, results)
    assert "after 2010..2020" in page.text and "after 2010 " not in page.text


def test_report__numbers_are_percent_with_one_decimal(tmp_path):
    results = make_results()
    results["matrices"]["test"]["mean_R@1"]["E"][1] = [0.12345, 0.5, 1.0]
    page = write(tmp_path, results)
    assert "after 2014 & <b> 12.3 50.0 100.0" in page.text
    ranks = results["matrices"]["test"]["image_to_text_median_rank"]["E"][0]
    assert " ".join(f"{rank:.1f}" for rank in ranks) in page.text


def test_report__plots_lie_beside_it(tmp_path):
    write(tmp_path, make_results())
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    end = "test_mean_R_at_1.png"
    assert names == [f"budget_{end}", f"matrix_{end}", f"over_time_{end}"]


def test_report__several_streams_have_a_section_each(tmp_path):
    results = make_results()
    results["matrices"]["valid/1"] = results["matrices"]["test"]
    page = write(tmp_path, results)
    assert "Results on stream “valid/1”" in page.text and len(page.sources) == 6


def test_report__of_a_run_that_was_evaluated_at_points(tmp_path):
    points = {"at": {"samples": 20}, "steps": [0, 2], "samples": [10, 60]}
    page = write(tmp_path, make_results(steps=2, evaluations=points))
    last = make_results(steps=2)["matrices"]["test"]["mean_R@1"]["E"][-1]
    assert f"{100 * sum(last) / 3:.1f} % mean_R@1, final" in page.text
    assert "metric (%) before final average image_to_text_R@1" in page.text
    assert "Final is the mean" in page.text and "In-domain" not in page.text
    assert "after 2010" in page.text and "after 2014" not in page.text


def test_report__names_and_settings_are_escaped_everywhere(tmp_path):
    name = """a"b'<i>&{{ 1 }}</i>"""
    results = make_results(method=name, versions={name: [name]}) | {"seed": name}
    results["data"] = {
        "hash": name,
        "counts": {name: [1, 2, 3]},
        "labels": {stream: [name] * 3 for stream in ("train", name)},
    }
    results["macs"]["macs"] = [{name: 1.0}] * 3
    results["matrices"] = {
        name: {f"{name}R@1": results["matrices"]["test"]["mean_R@1"]}
    }
    page = write(tmp_path, results)
    assert "<i>" not in (tmp_path / "report.html").read_text()
    assert page.text.count(name) > 20 and len(page.sources) == 3


def test_report__parameters_of_an_optimiser_are_counted(tmp_path):
    groups = {"image.weight": 0, "text.weight": 0, "image.bias": 1}
    settings = {"optimizer": {"groups": [{"lr": 0.1}, {"lr": 0.2}], "group of": groups}}
    page = write(tmp_path, make_results() | {"config": settings})
    assert "image.weight" not in page.text
    for row in ("optimizer.groups[0].parameters 2", "optimizer.groups[1].parameters 1"):
        assert row in " ".join(page.text.split())


@pytest.mark.parametrize("steps, tests", [(1, 1), (2, 3), (3, 2)])
def test_report__any_shape_of_matrix(tmp_path, steps, tests):
    page = write(tmp_path, make_results(steps=steps, tests=tests))
    assert f"{steps} steps on {tests} test sets" in page.text


def test_report__missing_values_and_facts(tmp_path):
    results = make_results()
    results["matrices"]["test"]["mean_R@1"]["E"][2] = [None, math.nan, 0.5]
    results["matrices"]["test"]["mean_R@1"]["before"] = None
    bare = {key: results[key] for key in ("matrices", "method")}
    page = write(tmp_path, bare)
    assert "– – 50.0" in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_report__a_run_without_finished_experience(tmp_path):
    results = make_results()
    for parts in results["matrices"]["test"].values():
        parts["E"] = []
    assert "No experience was finished" in write(tmp_path, results).text


def test_report__says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="no matrices"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"{", "not a JSON text"),
        (PAGE, "web page"),
        (POINTER, "git lfs pull"),
        (b"[1]", "holds a list"),
        (b"{}", "no matrices"),
        (b'{"matrices": [1]}', "no matrix of numbers"),
        (b'{"matrices": {"test": 3}}', "no matrix of numbers"),
        (b'{"matrices": {"test": {"R": {}}}}', "no matrix of numbers under 'R'"),
        (b'{"matrices": {"test": {"R": {"E": "x"}}}}', "under 'R'"),
        (b'{"matrices": {"test": {"R": {"E": [[1], [1, 2]]}}}}', "under 'R'"),
        (b'{"matrices": {"test": {"R": {"E": [[1]]}}}, "data": 3}', "under 'data'"),
    ],
)
def test_report__of_a_damaged_file_names_it(tmp_path, content, words):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        write_report(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_report__compares_the_checksum_of_a_file_that_has_one(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, make_results(), checksum=True)
    write_report(tmp_path)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"results\.json is damaged or was changed"):
        write_report(tmp_path)


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_report__an_interrupted_one_leaves_the_old_files(tmp_path, fault):
    write_json(tmp_path / "results.json", make_results(), checksum=True)
    write_report(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with mock.patch.object(os, fault, side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            write_report(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def suite_rows(many=0):
    tasks = {f"task {k}": {"acc1": k / 40, "count": 7} for k in range(many)}
    rows = {}
    for number, name in enumerate(("before", "0", "1", "2")):
        acc1 = {"acc1": number / 8, "acc1_low": 0.01, "count": 719, "acc5": 0.5}
        rows[name] = {
            "emoji <b>": acc1,
            "icons": {"mean_R@1": 0.25, "mean_R@1_high": 0.3},
            **tasks,
        }
    del rows["0"]["icons"]
    return rows


def test_report__a_section_per_suite(tmp_path):
    one = {"pairs": {"share": 7e-5, "born_count": 3.0, "healed_count": None}}
    results = make_results(
        suites={
            "zero-shot": suite_rows(),
            "blind pairs": dict.fromkeys(("before", "0", "1", "2"), one),
        },
        suites_missing={"zero-shot": {"imagenet1k": "no file /data/0.tar"}},
    )
    page = write(tmp_path, results)
    assert "Suite “zero-shot”" in page.text and "Suite “blind pairs”" in page.text
    after = "before after 2010 after 2014 & <b> after 2015"
    assert f"{after} emoji <b> (719), acc1 0.0 12.5 25.0 37.5" in page.text
    assert "icons, mean_R@1 25.0 – 25.0 25.0" in page.text
    # Of the only task all metrics are shown, and nothing behind it.
    assert "pairs, share 0.007 0.007 0.007 0.007 pairs, born_count 3 3" in page.text
    assert "emoji <b> (719), acc5 50.0" in page.text and "acc1_low" not in page.text
    assert page.text.count("further metrics") == 1
    assert "imagenet1k no file /data/0.tar" in page.text
    made = sorted(path.name for path in tmp_path.glob("suite_*.png"))
    assert made == [
        "suite_blind_pairs_pairs_1.png",
        "suite_blind_pairs_share_0.png",
        "suite_zero-shot_acc1_0.png",
        "suite_zero-shot_mean_R_at_1_1.png",
    ]
    assert len(page.sources) == 3 + len(made)


def test_report__many_tasks_of_a_suite_at_some_points(tmp_path):
    evaluations = {"at": [0, 2], "steps": [0, 2], "samples": [10, 60]}
    rows = suite_rows(many=20)
    del rows["2"], rows["before"]
    matrices = make_results(steps=2)["matrices"]
    results = make_results(
        suites={"many": rows}, evaluations=evaluations, matrices=matrices
    )
    page = write(tmp_path, results)
    assert "after 2010 after 2015 emoji <b> (719), acc1 12.5 25.0" in page.text
    assert "task 19 (7), acc1 47.5 47.5" in page.text


def test_report__a_run_that_was_stopped_before_its_first_step(tmp_path):
    rows = {"before": suite_rows()["before"]}
    page = write(tmp_path, make_results(suites={"zero-shot": rows}))
    assert "emoji <b> (719), acc1 0.0" in page.text


def test_report__begins_with_what_was_gained_and_forgotten(tmp_path):
    results = make_results()
    E = [[0.9, 0.1, 0.1], [0.5, 0.8, 0.1], [0.4, 0.6, 0.8]]
    results["matrices"]["test"]["mean_R@1"] = {"before": [0.1, 0.2, 0.3], "E": E}
    results["chance"] = {"test": {"mean_R@1": [0.01, 0.02, 0.03]}}
    text = write(tmp_path, results).text
    said = (
        "mean_R@1 over 3 test sets rose from 20.0 % before the stream to 60.0 % after"
    )
    assert said in text and "(+40.0 points); guessing would give 2.0 %." in text
    assert "Earlier test sets fell by 35.0 points" in text
    columns = "items chance before when trained last 95 % interval gained forgotten"
    assert f"mean_R@1 % {columns} 2010 1 1.0 10.0 90.0 40.0" in text
    assert re.search(r"all, mean 6 2.0 20.0 83.3 60.0 \S+ \+40.0 35.0", text)
    assert "metric (%) chance before" in text


@pytest.mark.parametrize("tests", [1, 3])
def test_report__no_table_is_empty(tmp_path, tests):
    write(tmp_path, make_results(tests=tests))
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"<tr><th>[^<]*</th>\s*</tr>", page)
    assert (tmp_path / "matrix_test_mean_R_at_1.png").exists() == (tests > 1)


def test_report__own_metrics_and_losses_are_drawn(tmp_path):
    results = make_results(metrics={"Drift": {"a": [0.1, None, 0.3], "n": 3}})
    results["matrices"]["test"]["Own"] = results["matrices"]["test"]["mean_R@1"]
    term = {"at": [10, 20, 30], "mean": [3.0, 2.0, 1.0]}
    terms = {"loss": term, "alignment": term}
    results["losses"] = {"terms": terms, "ends": [[0, 15], [1, 30]]}
    page = write(tmp_path, results)
    assert "Training loss" in page.text and "Own metrics" in page.text
    for name in ("losses", "metric_Drift", "over_time_test_Own"):
        assert (tmp_path / f"{name}.png").exists()


def test_report__examples_show_pictures_and_what_was_found(tmp_path):
    found = [[[True, "a"], [False, "b <i>"], None, [True, "a"]], [[False, "c"]] * 4]
    items = [
        {"picture": f"{k}.png", "text": f"own {k}", "found": f}
        for k, f in enumerate(found)
    ]
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    page = write(tmp_path, make_results(examples={"test": items * 9}))
    assert "picture before 2010 2014 & <b> 2015 own 0 ✓ ✗ b <i> ✗ – ✓" in page.text
    assert page.text.count("own 0") == page.text.count("own 1") == 6
    assert len(page.sources) == 3 + 6


def test_report__of_many_times_shows_examples_of_some(tmp_path):
    found = [[k % 2 == 0, f"no {k}"] for k in range(31)]
    one = [{"picture": None, "text": "own", "found": found}]
    labels = [f"step {k}" for k in range(30)]
    results = make_results(steps=30, examples={"test": one})
    results["data"] = {"counts": {"train": [7] * 30}, "labels": {"train": labels}}
    text = write(tmp_path, results).text
    shown = text[text.index("Hits and misses") :]
    assert shown.count("✓") - 1 + shown.count("✗ no") == 12  # the note has one
    assert "picture before" in shown and "no 29" not in shown and "✓ What" in shown
    assert "train samples step 0 7 step 1 7" in text and "sum 210" in text


def test_report__of_an_extended_run_counts_what_is_known(tmp_path):
    results = make_results()
    E = [[0.9, 0.1, None], [0.5, 0.8, None], [0.4, 0.6, 0.8]]
    results["matrices"]["test"]["mean_R@1"] = {"before": [0.1, 0.2, None], "E": E}
    text = write(tmp_path, results).text
    said = "mean_R@1 over the 2 of 3 test sets known before rose from 15.0 % before the"
    assert f"{said} stream to 50.0 % after it (+35.0 points)." in text
    assert "Earlier test sets fell by 35.0 points" in text


def test_report__a_score_that_stays_has_not_risen(tmp_path):
    results = make_results()
    parts = {"before": [0.5, 0.5, 0.5], "E": [[0.5, 0.5, 0.5]] * 3}
    results["matrices"]["test"]["mean_R@1"] = parts
    text = write(tmp_path, results).text
    assert "mean_R@1 over 3 test sets is 50.0 %, as before the stream." in text
    assert "Nothing was forgotten" in text
