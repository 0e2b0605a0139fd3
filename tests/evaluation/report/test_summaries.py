import json

import numpy as np
import pytest

from avalanche_clip.evaluation.functional import (
    continual_summary,
    time_transfer,
    transfer_average_last,
)
from avalanche_clip.evaluation.report.page import write_report
from avalanche_clip.evaluation.report.results import Matrix, main_metric, matrices
from avalanche_clip.evaluation.report.summaries import is_result, protocol_summary
from tests.evaluation.results import make_results

E = np.array([[0.5, 0.2], [0.4, 0.6]])
BEFORE = np.array([0.1, 0.1])


def test_stored_summary__of_time_is_as_ever():
    found = Matrix(E, BEFORE, []).stored_summary()
    expected = {"final": 0.5, "average": pytest.approx(0.425)}
    expected |= {**time_transfer(E), **continual_summary(E, BEFORE)}
    assert found == expected
    gallery = Matrix(E[:, :1], BEFORE[:1], [])
    assert set(gallery.stored_summary()) == {"final", "average"}


def test_protocol_summary__by_protocol():
    domains = protocol_summary(E, "multi_domain")
    assert transfer_average_last(E).items() <= domains.items()
    assert {"seen", "unseen", "harmonic"} <= set(domains)
    classes = protocol_summary(E, "class_incremental", [3, 1], "seen")
    assert classes == protocol_summary(E, "class_incremental", [3, 1], "all")
    assert classes["incremental_last"] == pytest.approx((1.2 + 0.6) / 4)
    assert set(classes) == {"incremental_average", "incremental_last"}
    for arguments in (
        (E, None),
        (E, "time"),
        (E[:, :1], "multi_domain"),
        (np.array([[np.nan]]), "multi_domain"),
        (-E, "multi_domain"),
        (E, "class_incremental", None, "seen"),
        (E, "class_incremental", [3], "seen"),
        # Images of each step among its own classes: no incremental accuracy.
        (E, "class_incremental", [3, 1]),
        (E, "class_incremental", [3, 1], "own"),
        (E, "class_incremental", [3, 1], "current"),
    ):
        assert protocol_summary(*arguments) == {}


def test_is_result__recalls_and_accuracies():
    names = [
        "mean_R@1",
        "Top1_Acc_Exp",
        "acc1",
        "Loss_Exp",
        "image_to_text_median_rank",
    ]
    assert [is_result(n) for n in names] == [True, True, True, False, False]
    assert main_metric(["Loss_Exp", "Top1_Acc_Exp"]) == "Top1_Acc_Exp"
    assert main_metric(["Top1_Acc_Exp", "mean_R@1"]) == "mean_R@1"
    assert main_metric(["Loss_Exp"]) == "Loss_Exp"


@pytest.mark.parametrize("space", ["seen", "own"])
@pytest.mark.parametrize("protocol", ["multi_domain", "class_incremental", None])
def test_report__shows_the_summaries_of_the_protocol(tmp_path, protocol, space):
    results = make_results()
    results["data"] = {**results["data"], "protocol": protocol}
    results["config"] = {**results.get("config", {}), "eval_label_space": space}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path).read_text()
    assert ("harmonic" in page) == (protocol == "multi_domain")
    assert ("Per data set" in page) == (protocol == "multi_domain")
    joint = protocol == "class_incremental" and space == "seen"
    assert ("incremental average" in page) == joint
    found = matrices(results)["test"]
    summary = found["mean_R@1"].summary()
    assert ("transfer" in summary) == (protocol == "multi_domain")
    assert "transfer" not in found["image_to_text_median_rank"].summary()
