import numpy as np
import pytest
import torch
import torch.nn.functional as F
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    FeatureDistillationPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)

from avalanche_clip.benchmarks import ClassPrompts, prepare_benchmark
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.plugins import (
    BudgetedReplayPlugin,
    ContrastiveEWCPlugin,
    ContrastiveLwFPlugin,
    OffDiagonalAlignmentPlugin,
    ReferenceDistillationPlugin,
    WeightAveragingPlugin,
)
from avalanche_clip.training.templates import ClassNameTemplate, ContrastiveTemplate
from tests.helpers import (
    Recorder,
    assert_other_weights,
    assert_same_weights,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)
from tests.training.classes import class_benchmark, class_strategy, domain_benchmark

pytestmark = pytest.mark.filterwarnings("ignore")


class Watch(Recorder):
    """Note what a strategy exposes at each training step."""

    def __init__(self):
        self.steps = []

    def before_backward(self, strategy, **kwargs):
        self.steps.append(
            {
                "classes": strategy.mb_classes.tolist(),
                "label_ids": strategy.label_ids,
                "y": strategy.mb_y.clone(),
                "targets": strategy.mb_targets.clone(),
                "output": strategy.mb_output.detach().clone(),
                "features": strategy.mb_features,
                "global": strategy.global_features,
                "text": strategy.mb_x["text"].clone(),
                "keys": set(strategy.mb_x),
                "image": strategy.mb_x["image"].clone(),
                "loss": strategy.loss.detach().clone(),
            }
        )


def run(benchmark=None, steps=None, model=None, **options):
    model = model or stub_model()
    benchmark = benchmark or domain_benchmark(model)
    watch = Watch()
    plugins = [*options.pop("plugins", ()), watch]
    strategy = class_strategy(model, plugins=plugins, **options)
    train_stream(strategy, benchmark, steps)
    return strategy, watch


# ------------------------------------------------------------------------ the step
def test_step__one_call_of_the_model_with_one_prompt_per_class():
    model = stub_model()
    benchmark = domain_benchmark(model)
    strategy, watch = run(benchmark, steps=2, model=model)
    assert model.forwards == 10
    tokens = model.tokenizer(benchmark.class_prompts.prompts([3, 4, 5, 6]))
    for step in watch.steps[5:]:
        assert step["classes"] == [3, 4, 5, 6] == list(step["label_ids"])
        assert torch.equal(step["text"], tokens)
        assert "owner" not in step["keys"] and "sample_id" in step["keys"]
        assert step["output"].shape == (6, 4)
        assert step["features"].text_features.shape == (4, 8)
        assert torch.equal(step["y"] + 3, step["targets"])
        assert step["global"].image_features.shape == (6, 8)


def test_step__loss_is_cross_entropy_over_prompts():
    model = stub_model()
    before = stub_model()
    _, watch = run(domain_benchmark(model), steps=1, model=model, label_smoothing=0.2)
    step = watch.steps[0]
    image = before.encode_image(step["image"])
    text = before.encode_text(step["text"])
    logits = before.logit_scale.exp() * image @ text.T
    torch.testing.assert_close(step["output"], logits)
    logs = logits.log_softmax(1)
    rows = [
        0.8 * -logs[i, y] + 0.2 * (-logs[i]).mean() for i, y in enumerate(step["y"])
    ]
    torch.testing.assert_close(step["loss"].squeeze(), torch.stack(rows).mean())


@pytest.mark.parametrize(("smoothing", "value"), [(0.2, 0.503179), (0.0, 0.169846)])
def test_criterion__label_smoothing_has_the_published_value(smoothing, value):
    strategy = class_strategy(label_smoothing=smoothing)
    loss = strategy._criterion(torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0]))
    assert float(loss) == pytest.approx(value, abs=1e-6)


def test_criterion__may_be_replaced():
    calls = []

    def loss(logits, columns):
        calls.append((logits.shape, columns.max()))
        return F.cross_entropy(logits, columns)

    plain, _ = run(steps=1)
    other, _ = run(steps=1, criterion=loss)
    assert_same_weights(plain.model, other.model)
    assert len(calls) == 5 and calls[0][0] == (6, 3)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1.*give it to the crit"):
        run(steps=0, criterion=loss, label_smoothing=0.1)


# --------------------------------------------------------------------- label spaces
@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("current", [(0, 1, 2), (3, 4, 5, 6), (7, 8)]),
        ("own", [(0, 1, 2), (3, 4, 5, 6), (7, 8)]),
        ("seen", [tuple(range(n)) for n in (3, 7, 9)]),
        ("all", [tuple(range(9))] * 3),
    ],
)
def test_label_space__in_training(space, expected):
    strategy, watch = run(label_space=space)
    assert [step["label_ids"] for step in watch.steps[::5]] == expected
    assert all(step["output"].shape[1] == len(step["classes"]) for step in watch.steps)
    assert strategy.seen_classes == tuple(range(9))


def test_label_space__columns_ascend_in_any_order_of_domains():
    model = stub_model()
    benchmark = domain_benchmark(model, order=[2, 0, 1])
    strategy, watch = run(benchmark, model=model, label_space="seen")
    spaces = [step["label_ids"] for step in watch.steps[::5]]
    assert spaces == [(7, 8), (0, 1, 2, 7, 8), tuple(range(9))]
    for step in watch.steps:
        ids = np.asarray(step["classes"])
        assert (ids[step["y"]] == step["targets"].numpy()).all()
    assert strategy.seen_classes == (7, 8, 0, 1, 2, 3, 4, 5, 6)


class EvalWatch(Recorder):
    def __init__(self):
        self.spaces = {}

    def after_eval_iteration(self, strategy, **kwargs):
        index = strategy.experience.current_experience
        assert strategy.mb_output.shape[1] == len(strategy.label_ids)
        assert strategy.mb_classes.tolist() == list(strategy.label_ids)
        ids = strategy.mb_classes[strategy.mb_y]
        assert torch.equal(ids, strategy.mb_targets)
        self.spaces[index] = strategy.label_ids


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({}, [(0, 1), (2, 3), (4, 5)]),
        ({"eval_label_space": "own"}, [(0, 1), (2, 3), (4, 5)]),
        ({"label_space": "all"}, [tuple(range(6))] * 3),
        (
            {"eval_label_space": "seen"},
            [(0, 1, 2, 3), (0, 1, 2, 3), tuple(range(6))],
        ),
        ({"label_space": "seen"}, [(0, 1, 2, 3), (0, 1, 2, 3), tuple(range(6))]),
        ({"eval_label_space": "all"}, [tuple(range(6))] * 3),
    ],
)
def test_label_space__in_evaluation(options, after):
    model, watch = stub_model(), EvalWatch()
    benchmark = class_benchmark(model)
    strategy = class_strategy(model, plugins=[watch], **options)
    if options.get("eval_label_space") == "seen":
        strategy.eval(benchmark.test_stream)
        assert list(watch.spaces.values()) == [(0, 1), (2, 3), (4, 5)]
    train_stream(strategy, benchmark, 2)
    strategy.eval(benchmark.test_stream)
    assert list(watch.spaces.values()) == after


def test_current__holds_the_classes_of_replayed_samples():
    _, watch = run(plugins=[BudgetedReplayPlugin("exp", 6)])
    spaces = [set(step["label_ids"]) for step in watch.steps[::5]]
    assert spaces[0] == {0, 1, 2}
    assert spaces[1] > {3, 4, 5, 6} and spaces[1] <= set(range(7))
    seen = [set(step["targets"].tolist()) for step in watch.steps[5:10]]
    assert set().union(*seen) & {0, 1, 2}


def test_current__holds_the_classes_of_stock_replay():
    _, watch = run(plugins=[ReplayPlugin(mem_size=12, batch_size_mem=3)])
    assert watch.steps[0]["label_ids"] == (0, 1, 2)
    assert set(watch.steps[5]["label_ids"]) >= {3, 4, 5, 6}
    assert set(watch.steps[5]["label_ids"]) & {0, 1, 2}
    assert len(watch.steps[5]["targets"]) == 9


def test_own__refuses_replayed_samples_of_other_classes():
    with pytest.raises(ValueError, match="label_space='own'"):
        run(label_space="own", plugins=[BudgetedReplayPlugin("all")])


def test_single_class__is_warned_about():
    model = stub_model()
    with pytest.warns(UserWarning, match="one class only"):
        run(domain_benchmark(model, sizes=(1, 2)), steps=1, model=model)


# --------------------------------------------------------- prompts and other data
def test_prompts__of_the_strategy_win_over_the_benchmark():
    model = stub_model()
    benchmark = domain_benchmark(model)
    given = ClassPrompts([chr(97 + k) for k in range(9)], "{} x")
    strategy, watch = run(benchmark, steps=1, model=model, class_prompts=given)
    assert torch.equal(watch.steps[0]["text"], model.tokenizer(["a x", "b x", "c x"]))
    assert strategy.class_prompts is given


def plain_benchmark(prompts):
    """Image-text data with targets, which know nothing of class names."""
    from tests.helpers import stub_benchmark

    benchmark = stub_benchmark((12, 12), prepare=False, targets=True, groups=3)
    if prompts is not None:
        benchmark.class_prompts = prompts
    return prepare_benchmark(benchmark, stub_model())


def test_prompts__of_any_benchmark_with_targets():
    prompts = ClassPrompts(["a", "b", "c", "d", "e", "f"])
    strategy, watch = run(plain_benchmark(prompts))
    assert [s["label_ids"] for s in watch.steps[::5]] == [(0, 1, 2), (3, 4, 5)]
    assert strategy.class_prompts is prompts


def test_prompts__missing_ones_and_missing_targets_are_named():
    with pytest.raises(ValueError, match="There are no class prompts"):
        run(plain_benchmark(None))
    with pytest.raises(ValueError, match="Class id 3 is unknown"):
        run(plain_benchmark(ClassPrompts(["a", "b", "c"])))
    model = stub_model()
    pairs = stub_benchmark(model=model)
    with pytest.raises(ValueError, match="have no targets"):
        run(pairs, model=model, class_prompts=ClassPrompts(["a", "b"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"text_batch_size": 0}, "text_batch_size"),
    ],
)
def test_options__are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        class_strategy(**options)
    with pytest.raises(TypeError, match="unexpected keyword|unknown argument"):
        class_strategy(positives="targets")


def test_retrieval_metrics__are_refused():
    from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics

    with pytest.raises(ValueError, match="accuracy_metrics"):
        class_strategy(evaluator=quiet_evaluator([retrieval_plugin_metrics()]))


def test_class_data__also_train_as_pairs():
    model = stub_model()
    benchmark = domain_benchmark(model)
    strategy = class_strategy(
        model,
        ContrastiveTemplate,
        positives="targets",
        evaluator=quiet_evaluator(),
    )
    train_stream(strategy, benchmark)
    assert_other_weights(model, stub_model())


# ------------------------------------------------------------- bare model output
def test_criterion__bare_model_output_and_raw_ids():
    model = stub_model()
    benchmark = domain_benchmark(model)
    found = []

    class Ask(Recorder):
        def before_training_iteration(self, strategy, **kwargs):
            dataset = strategy.experience.dataset
            batch, targets, _ = dataset.collate_fn([dataset[k] for k in range(5)])
            model.zero_grad()
            loss = strategy._criterion(model(batch), targets)
            loss.backward()
            prompts = benchmark.class_prompts.prompts(strategy.label_ids)
            text = model.encode_text(model.tokenizer(prompts))
            logits = model.logit_scale.exp() * model.encode_image(batch["image"])
            columns = targets - strategy.label_ids[0]
            expected = F.cross_entropy(logits @ text.T, columns)
            found.append((loss.detach(), expected.detach()))
            assert model.token.weight.grad.abs().sum() > 0
            assert model.image_proj.weight.grad.abs().sum() > 0

    run(benchmark, steps=2, model=model, plugins=[Ask()])
    assert len(found) == 10
    for loss, expected in found:
        torch.testing.assert_close(loss, expected)


def test_criterion__own_output_needs_no_second_text_pass():
    model = stub_model()
    calls = []
    encode = model.encode_text
    model.encode_text = lambda *a, **k: calls.append(1) or encode(*a, **k)

    class Ask(Recorder):
        def before_backward(self, strategy, **kwargs):
            again = strategy._criterion(strategy.mb_features, strategy.mb_targets)
            torch.testing.assert_close(again, strategy.loss.squeeze())

    run(domain_benchmark(model), steps=1, model=model, plugins=[Ask()])
    assert calls == []


def test_criterion__ids_outside_the_running_space_use_all_seen_classes():
    model = stub_model()
    benchmark = domain_benchmark(model)
    strategy, _ = run(benchmark, steps=2, model=model)
    dataset = benchmark.train_stream[0].dataset
    batch, targets, _ = dataset.collate_fn([dataset[k] for k in range(4)])
    output = model(batch)
    text = model.encode_text(model.tokenizer(benchmark.class_prompts.prompts(range(7))))
    logits = output.logit_scale * output.image_features @ text.T
    loss = strategy._criterion(output, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets))
    with pytest.raises(ValueError, match="unknown"):
        strategy._criterion(output, targets + 50)


# ------------------------------------------------------------------ stock plugins
@pytest.mark.parametrize(
    "make",
    [
        lambda: EWCPlugin(ewc_lambda=1e3),
        lambda: EWCPlugin(ewc_lambda=1e3, mode="online", decay_factor=0.5),
        lambda: SynapticIntelligencePlugin(si_lambda=1e2),
        lambda: AGEMPlugin(patterns_per_experience=6, sample_size=4),
        lambda: FeatureDistillationPlugin(alpha=1e2),
        lambda: ReplayPlugin(mem_size=10),
        lambda: ContrastiveEWCPlugin(ewc_lambda=1e3, fisher_batch_size=6),
        lambda: ContrastiveLwFPlugin(),
        lambda: WeightAveragingPlugin(interval=2),
        lambda: ReferenceDistillationPlugin("current", "current", teacher="previous"),
    ],
)
def test_plugins__run_and_change_the_second_experience(make):
    plain, _ = run()
    strategy, watch = run(plugins=[make()])
    assert_other_weights(plain.model, strategy.model)
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
    first = [step["loss"] for step in watch.steps[:5]]
    assert all(torch.isfinite(loss).all() for loss in first)


def test_ewc__fisher_reaches_both_towers():
    plugin = EWCPlugin(ewc_lambda=1.0)
    run(steps=1, plugins=[plugin])
    importances = {k: v.data for k, v in plugin.importances[0].items()}
    for name in ("image_proj.weight", "token.weight", "text_proj.weight"):
        assert importances[name].abs().sum() > 0


def test_plugins__that_need_pairs_are_refused():
    with pytest.raises(ValueError, match="square"):
        class_strategy(plugins=[OffDiagonalAlignmentPlugin()])


def test_output__is_a_clip_output_with_norms():
    _, watch = run(steps=1)
    features = watch.steps[0]["features"]
    assert isinstance(features, CLIPOutput)
    assert features.aux["image_norm"].shape == (6, 1)
    assert features.aux["text_norm"].shape == (3, 1)


def test_sigmoid_model__keeps_its_bias_in_the_logits():
    model = stub_model(bias=True)
    _, watch = run(domain_benchmark(model), steps=1, model=model)
    assert watch.steps[0]["output"].mean() < -1.0


def test_default_evaluator__measures_accuracy():
    model = stub_model()
    strategy = ClassNameTemplate(model=model, train_mb_size=6, budget_iterations=2)
    found = strategy.eval(domain_benchmark(model).test_stream)
    assert "Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp001" in found
