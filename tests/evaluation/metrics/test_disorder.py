import math

import pytest
import torch
from avalanche.logging import InteractiveLogger, TensorboardLogger

from avalanche_clip import distributed
from avalanche_clip.evaluation.functional import spatial_disorder
from avalanche_clip.evaluation.loggers import MetricsCSVLogger
from avalanche_clip.evaluation.metrics import (
    SpatialDisorderMetric,
    retrieval_plugin_metrics,
    spatial_disorder_metrics,
)
from avalanche_clip.training import Sequential, supervised
from tests.evaluation.helpers import Silent
from tests.evaluation.metrics.test_probe import embed_by_hand, prepared
from tests.helpers import (
    assert_same_weights,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_dataset,
    stub_model,
    train_stream,
    weights,
)
from tests.processes import run_in_processes
from tests.training.small_runs import (
    Interrupted,
    assert_same_runs,
    csv_without_times,
    evaluator,
    go,
)


def run(*metrics, model=None, loggers=(), steps=None, cls=Sequential, **options):
    model = model or stub_model(dropout=0.2, noise=0.1)
    benchmark = stub_benchmark(model=model)
    plugin = quiet_evaluator(list(metrics))
    plugin.loggers = list(loggers)
    strategy = build(cls, model, seed=3, evaluator=plugin, **options)
    return train_stream(strategy, benchmark, steps), benchmark


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_pairs": 0}, "max_pairs=0 must be an integer >= 1"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"keys": ["imd_mean", "nonsense"]}, r"keys \['nonsense'\] are unknown"),
        ({"name": "a/b"}, "without '/'"),
        ({"name": ""}, "without '/'"),
    ],
)
def test_metric__wrong_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialDisorderMetric(prepared(), **options)


def test_metric__unprepared_or_empty_probe_raises():
    with pytest.raises(ValueError, match="prepare_benchmark"):
        SpatialDisorderMetric(stub_dataset([0, 1], [0, 0]))
    dataset = prepared()
    with pytest.raises(ValueError, match="no pairs"):
        SpatialDisorderMetric(dataset.subset([]))


# ------------------------------------------------------------- what it measures
def test_metric__values_are_those_of_the_models_at_each_point():
    dataset = prepared()
    metric = SpatialDisorderMetric(dataset)
    model = stub_model(dropout=0.2, dim=4)  # N >= D: all values are defined
    found = [embed_by_hand(model, dataset, range(6))]

    class Watch:
        def after_training_exp(self, strategy):
            found.append(embed_by_hand(strategy.model, dataset, range(6)))

    run(metric, Watch(), model=model)
    assert len(found) == 4 and len(metric.rows) == 6
    for row in metric.rows:
        now = row["trained"]
        then = 0 if row["reference"] == "initial" else now - 1
        expected = spatial_disorder(*found[then], *found[now])
        assert row["experience"] == now - 1 and row["iteration"] == 5 * now
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, abs=1e-3), (key, row)
    first = [r for r in metric.rows if r["trained"] == 1]
    assert first[0] | {"reference": ""} == pytest.approx(first[1] | {"reference": ""})
    assert all(row["image_rotation_mean"] > 0.1 for row in metric.rows)
    curves = metric.result()
    assert curves["previous"]["trained"] == [1, 2, 3]
    assert curves["initial"]["imd_mean"] == [r["imd_mean"] for r in metric.rows[::2]]


def test_metric__sees_the_model_that_patching_leaves():
    metric = SpatialDisorderMetric(prepared())
    # patched back to the weights before, the model moves in the first step only
    run(metric, cls=supervised.Patching, grid=[0.0])
    moved = [row["image_rotation_mean"] for row in metric.rows]
    assert moved[0] == moved[1] == moved[2] == moved[4] > 0
    assert moved[3] == moved[5] == 0


def test_metric__keeps_first_and_newest_snapshot():
    few = SpatialDisorderMetric(prepared())
    run(few)
    assert sorted(few.snapshots) == [0, 3]
    for snapshot in few.snapshots.values():
        for part in snapshot:
            assert part.dtype == torch.float32 and part.device.type == "cpu"
            assert part.shape == (6, 8)
    few.reset()
    assert few.snapshots == {} and few.result() == {}


def test_metric__one_pair_works():
    metric = SpatialDisorderMetric(prepared(), max_pairs=1)
    strategy, _ = run(metric)
    assert math.isnan(metric.rows[0]["image_topology_change"])
    emitted = [n for n in strategy.evaluator.get_last_metrics() if "Spatial" in n]
    assert not any("topology" in n or n.endswith("rotation") for n in emitted)
    assert "SpatialDisorder/initial/imd_mean/train_phase/train_stream" in emitted


# ------------------------------------------------------------ what it emits
def test_metric__names_never_collide():
    logger = Silent()
    run(
        *spatial_disorder_metrics(prepared()),
        *spatial_disorder_metrics(prepared(), name="Other"),
        *retrieval_plugin_metrics(),
        loggers=[logger],
    )
    points = [(name, step) for name, _, step in logger.values]
    assert len(points) == len(set(points))
    names = {name for name, _ in points}
    # D = 8 > N = 6, so the Procrustes values are missing
    scalars = [
        k
        for k in spatial_disorder(*[torch.eye(2)] * 4)
        if "procrustes" not in k and k != "desynchronisation"
    ]
    for prefix in ("SpatialDisorder", "Other"):
        for reference in ("initial", "previous"):
            for key in [*scalars, "image_rotation", "text_rotation"]:
                name = f"{prefix}/{reference}/{key}/train_phase/train_stream"
                assert name in names
    assert len(names) == 4 * (len(scalars) + 2)
    assert {step for _, step in points} == {5, 10, 15}


def test_metric__same_name_twice_raises():
    metrics = [SpatialDisorderMetric(prepared()) for _ in range(2)]
    with pytest.raises(ValueError, match="another name"):
        run(*metrics)


def test_metric__chosen_keys_without_histograms():
    logger = Silent()
    metric = SpatialDisorderMetric(prepared(), keys=["imd_mean"], histograms=False)
    run(metric, loggers=[logger])
    assert {name.split("/")[2] for name, *_ in logger.values} == {"imd_mean"}
    assert "image_rotation_mean" in metric.rows[0]


def test_metric__reaches_tensorboard_csv_and_text(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorboardLogger(str(tmp_path))
    csv = MetricsCSVLogger(tmp_path / "metrics.csv")
    metric = SpatialDisorderMetric(prepared())
    strategy, benchmark = run(metric, loggers=[board, csv, InteractiveLogger()])
    strategy.eval(benchmark.test_stream)
    board.writer.flush()
    events = EventAccumulator(str(tmp_path), {"histograms": 0, "scalars": 0}).Reload()
    name = "SpatialDisorder/previous/imd_mean/train_phase/train_stream"
    points = [(e.step, e.value) for e in events.Scalars(name)]
    expected = metric.result()["previous"]
    assert [step for step, _ in points] == expected["iteration"]
    assert [v for _, v in points] == pytest.approx(expected["imd_mean"], rel=1e-5)
    histograms = events.Histograms(
        "SpatialDisorder/initial/text_rotation/train_phase/train_stream"
    )
    assert [h.histogram_value.num for h in histograms] == [6, 6, 6]
    rows = [row for row in csv_without_times(tmp_path) if row[1] == name]
    assert [int(row[0]) for row in rows] == [0, 1, 2]
    assert [float(row[2]) for row in rows] == expected["imd_mean"]
    text = capsys.readouterr().out
    assert "text_rotation/train_phase/train_stream = 6 values, mean" in text
    assert "object at" not in text


# -------------------------------------------------------- training is the same
def test_metric__training_is_bit_identical_with_and_without_it():
    options = {"cls": supervised.CumulativeExp, "buffer_size": 6}
    plain, _ = run(**options)
    plain_rng = torch.rand(3)
    metric = SpatialDisorderMetric(prepared(), batch_size=2)
    measured, _ = run(metric, **options)
    assert len(metric.rows) == 6
    assert torch.equal(torch.rand(3), plain_rng)
    assert_same_weights(plain.model, measured.model)
    assert str(plain.optimizer.state_dict()) == str(measured.optimizer.state_dict())


# ------------------------------------------------------------------- resuming
def assert_same_metric(left, right):
    assert str(left.rows) == str(right.rows) and left.rows
    assert left.snapshots.keys() == right.snapshots.keys()
    for key, snapshot in left.snapshots.items():
        for one, other in zip(snapshot, right.snapshots[key]):
            assert torch.equal(one, other)


def go_with_metric(out, **options):
    metric = SpatialDisorderMetric(prepared())
    options["evaluator"] = evaluator(metric)
    try:
        return metric, go(out, **options)
    except Interrupted:
        return metric, None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go_with_metric(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "stop",
    [{"train": 3}, {"train": 8}, {"train": 14}, {"evaluation": 2}, {"evaluation": 12}],
)
def test_metric__run_stopped_anywhere_ends_the_same(stop, whole, tmp_path):
    _, stopped = go_with_metric(tmp_path, stop=stop)
    assert stopped is None
    metric, resumed = go_with_metric(tmp_path, resume=True)
    assert_same_metric(metric, whole[0])
    assert_same_runs(resumed, whole[1])


def test_metric__state_of_another_probe_raises():
    metric = SpatialDisorderMetric(prepared())
    run(metric, steps=1)
    with pytest.raises(
        ValueError, match="pairs was 6 .* is 2 now; resume with the same probe"
    ):
        SpatialDisorderMetric(prepared(), max_pairs=2).load_state_dict(
            metric.state_dict()
        )


# ---------------------------------------------------------------- two processes
def two_rank_run():
    metric = SpatialDisorderMetric(prepared())
    model = stub_model()
    strategy, _ = run(
        metric,
        model=model,
        train_mb_size=4 // distributed.world_size(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
    )
    return {**metric.state_dict(), "weights": weights(model)}


def test_two_processes__measure_the_same_as_one(tmp_path):
    first, second = run_in_processes({"run": two_rank_run}, tmp_path)["run"]
    assert str(first["rows"]) == str(second["rows"]) and len(first["rows"]) == 6
    whole = two_rank_run()
    for ours, theirs in zip(first["rows"], whole["rows"]):
        for key, value in theirs.items():
            if not isinstance(value, str) and "share" not in key and key != "imd_tv":
                assert ours[key] == pytest.approx(value, abs=0.02, nan_ok=True), key
