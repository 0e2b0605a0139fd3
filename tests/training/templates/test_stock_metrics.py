"""Stock metrics: values against counts of our own, or a refusal in words."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import (
    CumulativeAccuracyPluginMetric,
    MAC_metrics,
    StreamConfusionMatrix,
    accuracy_matrix_metrics,
    accuracy_metrics,
    amca_metrics,
    bwt_metrics,
    class_accuracy_metrics,
    forgetting_metrics,
    forward_transfer_metrics,
    images_samples_metrics,
    labels_repartition_metrics,
    loss_metrics,
    mean_scores_metrics,
    topk_acc_metrics,
)

from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training import Sequential, run_stream
from tests.helpers import (
    At,
    assert_same_weights,
    build,
    fit,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
)
from tests.training.classes import (
    accuracy_evaluator,
    class_benchmark,
    class_strategy,
    domain_benchmark,
)


class Note(SupervisedPlugin):
    """Per evaluated stream and experience: class, predicted class, scores by class."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.rows = {}
        self.trained = []

    def before_eval(self, strategy, **kwargs):
        self.rows = {}

    def after_training_iteration(self, strategy, **kwargs):
        self.trained += strategy.mb_targets.tolist()

    def after_eval_iteration(self, strategy, **kwargs):
        experience = strategy.experience.logging()
        key = int(experience.current_experience)
        classes = getattr(strategy, "mb_classes", strategy.mb_targets).tolist()
        found = self.rows.setdefault(key, [])
        for target, scores in zip(
            strategy.mb_targets.tolist(), strategy.mb_output.tolist()
        ):
            best = {}
            for number, score in zip(classes, scores):
                best[number] = max(score, best.get(number, -np.inf))
            found.append((target, max(best, key=best.get), best))

    def all(self):
        return [row for rows in self.rows.values() for row in rows]


ORDER = {"relabel": "original", "class_order": [4, 1, 5, 0, 3, 2]}
"""Classes of steps and columns of label spaces are not in the order of the ids."""


def classes(metrics, space="seen", stream=class_benchmark, **options):
    model, note = stub_model(), Note()
    order = ORDER if stream is class_benchmark else {"order": [1, 2, 0]}
    strategy = class_strategy(
        model,
        plugins=[note],
        label_space="current",
        eval_label_space=space,
        evaluator=quiet_evaluator(metrics),
        **options,
    )
    return strategy, stream(model, **order), note


def pairs(metrics, captions=1, **options):
    model, note = stub_model(), Note()
    data = stub_benchmark(model=model, targets=True, captions=captions)
    strategy = build(
        Sequential, model, plugins=[note], evaluator=quiet_evaluator(metrics), **options
    )
    return strategy, data, note


CASES = {
    "own": lambda m, **o: classes(m, "own", **o),
    "seen": lambda m, **o: classes(m, "seen", **o),
    "all": lambda m, **o: classes(m, "all", **o),
    "domains": lambda m, **o: classes(m, "own", domain_benchmark, **o),
    "pairs": pairs,
    "captions": lambda m, **o: pairs(m, captions=3, **o),
}


def trained(case, metrics, steps=2, **options):
    strategy, data, note = CASES[case](metrics, **options)
    for experience in list(data.train_stream)[:steps]:
        strategy.train(experience, eval_streams=[])
    return strategy, data, note


@pytest.mark.parametrize("case", CASES)
def test_confusion_matrix__counts_global_classes(case):
    metrics = [StreamConfusionMatrix(save_image=False)]
    strategy, data, note = trained(case, metrics)
    found = strategy.eval(data.test_stream)
    matrix = found["ConfusionMatrix_Stream/eval_phase/test_stream"]
    rows = note.all()
    expected = np.zeros(matrix.shape)
    for target, predicted, _ in rows:
        expected[target, predicted] += 1
    np.testing.assert_array_equal(matrix, expected)
    assert matrix.sum() == len(rows) > 0
    width = 1 + max(max(scores) for _, _, scores in rows)
    assert len(matrix) == width


@pytest.mark.parametrize("case", CASES)
def test_class_accuracy_and_amca__are_of_global_classes(case):
    metrics = [class_accuracy_metrics(stream=True), amca_metrics()]
    strategy, data, note = trained(case, metrics)
    means = {}
    for _ in range(2):
        found = strategy.eval(data.test_stream)
        tasks = {}
        for index, rows in note.rows.items():
            task = index if case == "domains" else 0
            for target, predicted, _ in rows:
                hits = tasks.setdefault(task, {}).setdefault(target, [])
                hits.append(target == predicted)
        for task, by_class in tasks.items():
            for number, hits in by_class.items():
                name = f"Top1_ClassAcc_Stream/eval_phase/test_stream/Task00{task}"
                assert found[f"{name}/{number}"] == pytest.approx(np.mean(hits))
            mean = np.mean([np.mean(hits) for hits in by_class.values()])
            means.setdefault(task, []).append(mean)
            amca = found[f"Top1_AMCA_Stream/test_stream/Task00{task}"]
            assert amca == pytest.approx(np.mean(means[task]))
        strategy.train(data.train_stream[2], eval_streams=[])


@pytest.mark.parametrize("case", ["seen", "domains", "pairs"])
def test_mean_scores__of_new_and_old_classes(case):
    metrics = mean_scores_metrics(on_train=False, image_creator=None)
    strategy, data, note = trained(case, metrics, steps=3)
    new = data.train_stream[2].classes_in_this_experience
    for _ in range(2):  # a second evaluation counts its own samples alone
        found = strategy.eval([data.test_stream, data.train_stream])
        for stream in ("train", "test"):
            strategy.eval(data.streams[stream])
            sides = {"new": [], "old": []}
            for target, _, scores in note.all():
                sides["new" if target in new else "old"].append(scores[target])
            for side, values in sides.items():
                name = f"MeanScores/eval_phase/{stream}_stream/{side}_classes"
                assert found.get(name) == (
                    pytest.approx(np.mean(values), rel=1e-5) if values else None
                )


@pytest.mark.parametrize("case", ["own", "domains", "pairs", "captions"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_topk__counts_all_where_there_are_fewer_columns(case, k):
    metrics = topk_acc_metrics(top_k=k, experience=True)
    strategy, data, _ = CASES[case](metrics)
    hits = {}

    class Look(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            index = int(strategy.experience.current_experience)
            rows = strategy.mb_output.tolist()
            for row, own in zip(rows, strategy.mb_y.tolist()):
                better = sum(score > row[own] for score in row)
                hits.setdefault(index, []).append(better < k)

    strategy.plugins.append(Look())
    found = strategy.eval(data.test_stream)
    for index, values in hits.items():
        task = index if case == "domains" else 0
        name = f"Topk_{k}_Acc_Exp/eval_phase/test_stream/Task00{task}/Exp00{index}"
        assert found[name] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("case", ["own", "domains", "pairs"])
def test_labels_repartition__counts_classes(case):
    metrics = labels_repartition_metrics(
        on_train=True, emit_train_at="experience", image_creator=None
    )
    strategy, data, note = CASES[case](metrics)
    found = strategy.train(data.train_stream[1], eval_streams=[])
    task = 1 if case == "domains" else 0
    counts = found[f"Repartition/train_phase/train_stream/Task_00{task}"]
    assert {label: row[-1] for label, row in counts.items()} == {
        t: note.trained.count(t) for t in set(note.trained)
    }


def test_cumulative_accuracy__of_the_classes_of_each_step_and_before():
    strategy, data, note = trained("seen", [CumulativeAccuracyPluginMetric()], steps=3)
    found = strategy.eval(data.test_stream)
    known = set()
    for step, experience in enumerate(data.train_stream):
        known |= experience.classes_in_this_experience
        hits = []
        for target, _, scores in note.all():
            if target in known:
                mine = {c: s for c, s in scores.items() if c in known}
                hits.append(max(mine, key=mine.get) == target)
        name = f"CumulativeAccuracy/eval_phase/test_stream/Exp00{step}"
        assert found[name] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("case", ["seen", "domains", "pairs"])
def test_forgetting_and_transfer__are_kept_apart_by_stream(case):
    metrics = [
        accuracy_metrics(experience=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True),
        forward_transfer_metrics(experience=True),
        accuracy_matrix_metrics(),
    ]
    strategy, data, _ = CASES[case](metrics, eval_every=0)
    streams = ("test", "train")
    given = [data.streams[name] for name in streams]

    def accuracies(found):
        rows = {name: {} for name in streams}
        for key, value in found.items():
            if key.startswith("Top1_Acc_Exp/"):
                name = key.split("/")[2].removesuffix("_stream")
                rows[name][int(key[-3:])] = value
        return rows

    E = []
    before = accuracies(strategy.eval(given))
    for step, experience in enumerate(data.train_stream):
        strategy.train(experience, eval_streams=given)
        found = strategy.eval(given)
        E.append(accuracies(found))
        matrix = np.asarray(found["EvalStream/Acc_Matrix"])
        expected = [[row["train"][j] for j in range(3)] for row in E]
        np.testing.assert_allclose(matrix[: step + 1, :3], expected, atol=1e-6)
        for stream in streams:
            lost = [E[k][stream][k] - E[step][stream][k] for k in range(step)]
            for k in range(step):
                task = k if case == "domains" else 0
                end = f"/eval_phase/{stream}_stream/Task00{task}/Exp00{k}"
                assert found[f"ExperienceForgetting{end}"] == pytest.approx(lost[k])
                assert found[f"ExperienceBWT{end}"] == pytest.approx(-lost[k])
            if step:
                name = f"StreamForgetting/eval_phase/{stream}_stream"
                assert found[name] == pytest.approx(np.mean(lost))
            if step + 1 < 3:
                task = step + 1 if case == "domains" else 0
                end = f"{stream}_stream/Task00{task}/Exp00{step + 1}"
                gain = E[step][stream][step + 1] - before[stream][step + 1]
                name = f"ExperienceForwardTransfer/eval_phase/{end}"
                assert found[name] == pytest.approx(gain)


def test_images__are_the_data_as_the_model_sees_them_and_change_nothing():
    metrics = images_samples_metrics(n_rows=2, n_cols=3, on_eval=True)
    model = stub_model(dropout=0.3)
    strategy = class_strategy(model, evaluator=quiet_evaluator(metrics))
    data = class_benchmark(model)
    found = strategy.train(data.train_stream[0], eval_streams=[])
    (train,) = [m for m in metrics if m.mode == "train"]
    shown = data.train_stream[0].dataset.eval()
    known = [shown[i][0] for i in range(len(shown))]
    assert len(train.images) == 6
    assert all(any(torch.equal(i, k) for k in known) for i in train.images)
    assert "images/train_phase/train_stream/Task000" in found
    found = strategy.eval(data.test_stream)
    assert "images/eval_phase/test_stream/Task000/Exp002" in found
    plain = class_strategy(stub_model(dropout=0.3), evaluator=accuracy_evaluator())
    plain.train(class_benchmark(plain.model).train_stream[0], eval_streams=[])
    assert_same_weights(plain.model, strategy.model)


# -------------------------------------------------------------------- refusals
BY_CLASS = {
    "StreamConfusionMatrix": lambda: [StreamConfusionMatrix()],
    "StreamClassAccuracy": lambda: class_accuracy_metrics(stream=True),
    "AMCAPluginMetric": lambda: [amca_metrics()],
    "MeanScoresEvalPluginMetric": lambda: mean_scores_metrics(on_train=False),
    "LabelsRepartitionPlugin": lambda: labels_repartition_metrics(
        on_train=False, on_eval=True
    ),
}


@pytest.mark.parametrize("name", BY_CLASS)
def test_metrics_by_class__on_pairs_without_targets_say_why_not(name):
    strategy = build(Sequential, evaluator=quiet_evaluator(BY_CLASS[name]()))
    data = stub_benchmark()
    with pytest.raises(ValueError, match=f"{name} counts by class.*without targets"):
        strategy.eval(data.test_stream)


def test_metrics_by_class__in_training_say_so_before_the_first_step():
    for metrics in (
        class_accuracy_metrics(epoch=True),
        labels_repartition_metrics(),
        mean_scores_metrics(on_eval=False),
    ):
        strategy = build(Sequential, evaluator=quiet_evaluator(metrics))
        with pytest.raises(ValueError, match="without targets"):
            strategy.train(stub_benchmark().train_stream[0], eval_streams=[])
        assert strategy.clock.train_iterations == 0


def test_metrics_by_class__need_small_ids():
    def enlarge(strategy):
        strategy.mbatch[1] = strategy.mbatch[1] + 10**9

    metrics = [StreamConfusionMatrix(save_image=False)]
    strategy, data, _ = pairs(metrics)
    strategy.plugins.append(At("after_eval_forward", enlarge))
    with pytest.raises(ValueError, match="class ids from 10.*consecutively"):
        strategy.eval(data.test_stream)


def test_metrics__that_cannot_work_name_what_does():
    with pytest.raises(ValueError, match=r"EpochMAC .*strategy\.compute"):
        build(Sequential, evaluator=quiet_evaluator(MAC_metrics(epoch=True)))
    transfer = forward_transfer_metrics(experience=True)
    with pytest.raises(ValueError, match="eval_every=-1; build .*eval_every=0"):
        build(Sequential, evaluator=quiet_evaluator(transfer))
    strategy = build(Sequential, evaluator=quiet_evaluator([]))
    strategy.evaluator.metrics += MAC_metrics(experience=True)
    with pytest.raises(ValueError, match="ExperienceMAC"):
        strategy.eval(stub_benchmark().test_stream)


def every_metric():
    return [
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        class_accuracy_metrics(experience=True),
        StreamConfusionMatrix(),
        amca_metrics(),
        topk_acc_metrics(top_k=3, experience=True),
        mean_scores_metrics(),
        labels_repartition_metrics(on_eval=True),
        images_samples_metrics(n_rows=2, n_cols=2, on_eval=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        accuracy_matrix_metrics(),
    ]


@pytest.mark.parametrize("case", ["class names", "pairs"])
def test_run_stream__with_all_metrics_equals_one_without(case, tmp_path):
    model = stub_model(dropout=0.2)
    if case == "class names":
        strategy = class_strategy(model, evaluator=quiet_evaluator(every_metric()))
        plain = class_strategy(stub_model(dropout=0.2))
        data = class_benchmark(model)
    else:
        metrics = [*every_metric(), retrieval_plugin_metrics(ks=(1,))]
        strategy = build(Sequential, model, evaluator=quiet_evaluator(metrics))
        data = stub_benchmark(model=model, targets=True)
        plain = fit(Sequential, data, 0, model=stub_model(dropout=0.2))
    result = run_stream(strategy, data, tmp_path / "run")
    for experience in data.train_stream:
        plain.train(experience, eval_streams=[])
    assert_same_weights(plain.model, strategy.model)
    assert result.matrix("Top1_Acc_Exp").shape == (3, 3)
    assert "Topk_3_Acc_Exp" in (tmp_path / "run" / "metrics.csv").read_text()


def test_resumed__metrics_of_several_streams_go_on(tmp_path):
    from avalanche_clip.training.runs.resume import load_state, save_state

    def fresh():
        metrics = [
            forgetting_metrics(experience=True, stream=True),
            forward_transfer_metrics(experience=True),
            accuracy_matrix_metrics(),
        ]
        return classes(metrics, eval_every=0)

    def step(strategy, data, index):
        given = [data.test_stream, data.train_stream]
        strategy.train(data.train_stream[index], eval_streams=given)
        return strategy.eval(given)

    full, data, _ = fresh()
    for index in (0, 1):
        step(full, data, index)
    save_state(full, tmp_path / "state.pt")
    expected = step(full, data, 2)
    again, data, _ = fresh()
    assert load_state(again, tmp_path / "state.pt", data) == 2
    found = step(again, data, 2)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(np.asarray(value), np.asarray(found[name])), name
