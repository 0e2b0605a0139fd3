"""The alignment study: its methods, streams, table and command line."""

from types import SimpleNamespace

import numpy as np
import pytest

from avalanche_clip.benchmarks import attribute_array
from avalanche_clip.benchmarks.datasets import load_emoji_table

STUDY = "alignment"


def names(plugins):
    return [type(plugin).__name__ for plugin in plugins]


def test_build_plugins__weights_by_default_and_by_name(study):
    config = study.Config()
    (plain,) = study.build_plugins(config, "mod-x")
    assert plain.alpha == config.weights["mod-x"]
    (given,) = study.build_plugins(config, "mod-x:7.5")
    assert given.alpha == 7.5
    assert study.build_plugins(config, "sequential") == []
    both = study.build_plugins(config, "mod-x:2+lwf:3+replay")
    assert names(both) == [
        "OffDiagonalAlignmentPlugin",
        "ContrastiveLwFPlugin",
        "BudgetedReplayPlugin",
    ]
    assert both[1].lwf_weight == 3 and both[2].buffer_size == config.buffer_size


@pytest.mark.parametrize("method", ["lwf", "vr-lwf", "zscl"])
def test_build_plugins__every_method(method, study):
    assert names(study.build_plugins(study.Config(), method))


def test_two_domains__share_the_later_emoji(study):
    scenario = study.two_domains()
    table = load_emoji_table()
    assert list(scenario.streams) == ["train", "test", "base", "gallery"]
    assert scenario.time_labels == ["living", "things"]
    found = [attribute_array(e.dataset, "targets") for e in scenario.test_stream]
    assert not np.intersect1d(*found).size
    assert np.array_equal(np.sort(np.concatenate(found)), np.flatnonzero(table.step))
    for part, expected in zip(found, (True, False), strict=True):
        groups = {table.groups[g] for g in table.group[part]}
        assert all((g in study.LIVING) == expected for g in groups)
    train = [attribute_array(e.dataset, "targets") for e in scenario.train_stream]
    assert [len(t) for t in train] == [2 * len(t) for t in found]


def test_summary_line__old_new_and_disorder(study):
    E = np.array([[0.5, 0.0], [0.2, 0.4]])
    matrices = {"test": E, "base": np.array([[0.3], [0.1]]), "gallery": E[:, :1]}
    curves = {"initial": {key: [1.0, 2.0] for key in study.DISORDER}}
    result = SimpleNamespace(
        matrices=matrices,
        matrix=lambda metric, stream: matrices[stream],
        results={"metrics": {"SpatialDisorder": curves}},
        compute={"total_macs": 30.0, "macs": [{"train": 10.0}]},
    )
    line = study.summary_line(result)
    assert line["2010"] == pytest.approx(10) and line["new"] == pytest.approx(45)
    assert line["old"] == pytest.approx(15) and line["last"] == pytest.approx(40)
    assert line["cost"] == 3 and line["imd_mean"] == 2.0
    text = study.table({"a": [line, line]})
    assert "45.0 ±0.0" in text and "imd_mean" in text


def test_main__validation_run_and_resume(study, tmp_path, capsys):
    arguments = ["--validation", "--iterations", "1", "--out", str(tmp_path)]
    arguments += ["--methods", "sequential,mod-x:5"]
    study.main(arguments)
    first = capsys.readouterr().out
    assert "mod-x:5 " in first and (tmp_path / "comparison.html").is_file()
    study.main(arguments)
    assert capsys.readouterr().out == first
