import pytest
import torch

from avalanche_clip.training.plugins import (
    FrozenLogitScalePlugin,
    ReferenceDistillationPlugin,
    WeightAveragingPlugin,
    WeightConsolidationPlugin,
)
from avalanche_clip.training.supervised import ZSCL, FineTuning, zscl_variants
from avalanche_clip.training.templates.reference_data import ReferenceImages
from tests.helpers import (
    At,
    assert_other_weights,
    assert_same_weights,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)
from tests.methods.rows import IMAGES
from tests.methods.variants import TEXTS

NAMES = ["continual-ft", "wc", "we", "wise-ft", "lwf", "lwf-vr", "zscl*", "zscl"]


def model(**options):
    made = stub_model(**options)
    made.pretrained = "stub weights"
    return made


def small(cls=FineTuning, net=None, *, extra=(), **options):
    defaults = {
        "lr": 1e-2,
        "train_mb_size": 4,
        "budget_iterations": 6,
        "warmup_iterations": 2,
        "evaluator": quiet_evaluator,
    }
    if cls is ZSCL:
        defaults.update(
            reference_images=IMAGES,
            reference_texts=TEXTS,
            averaging_interval=2,
            plugin_options={"batch_size": 4},
        )
    options = {**defaults, **options}
    plugins = [*options.pop("plugins", ()), *extra]
    return cls(model=net or model(), plugins=plugins, **options)


def trained(steps=2, *args, benchmark=None, **options):
    return train_stream(small(*args, **options), benchmark or stub_benchmark(), steps)


def rates_of_groups():
    return At("after_update", lambda s: [g["lr"] for g in s.optimizer.param_groups])


def test_defaults__are_those_of_mtil():
    strategy = ZSCL(model=model(), reference_images=IMAGES, reference_texts=TEXTS)
    assert strategy.train_mb_size == 64 and strategy.compute.iterations == 1001
    assert strategy.schedule == "cosine"
    assert strategy.warmup_iterations == strategy.later_warmup_iterations == 100
    (group,) = strategy.optimizer.param_groups
    assert group["lr"] == 1e-5 and group["weight_decay"] == 0
    assert group["betas"] == (0.9, 0.999)
    kinds = {type(p): p for p in strategy.plugins}
    reference = kinds[ReferenceDistillationPlugin]
    assert (reference.image_weight, reference.text_weight) == (1.0, 1.0)
    assert reference.temperature == 2.0 and reference.batch_size == 64
    assert reference.teacher == "initial" and reference.text_side == "teacher"
    assert kinds[WeightConsolidationPlugin].weight == 1.0
    average = kinds[WeightAveragingPlugin]
    assert average.interval == 100 and average.mode == "we"
    assert FrozenLogitScalePlugin in kinds


def test_schedule__published_numbers():
    strategy = small(lr=1e-5, budget_iterations=1001, warmup_iterations=100)
    strategy.planned_iterations = 1001
    expected = {0: 1e-7, 49: 5e-6, 99: 1e-5, 100: 1e-5, 550: 5e-6, 1000: 0.0}
    for step, value in expected.items():
        strategy.clock.train_exp_iterations = step
        strategy._set_learning_rate()
        (group,) = strategy.optimizer.param_groups
        assert group["lr"] == pytest.approx(value, rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rates__one_per_experience(schedule):
    rates = rates_of_groups()
    options = {"lr": [1e-3, 5e-3], "schedule": schedule, "extra": [rates]}
    strategy = trained(2, **options)
    tops = [max(rates.seen[:6]), max(rates.seen[6:])]
    assert tops == [[1e-3], [5e-3]]
    if schedule == "cosine":
        assert rates.seen[5] == rates.seen[11] == [0.0]
        assert rates.seen[0] == [5e-4] and rates.seen[6] == [2.5e-3]
    with pytest.raises(ValueError, match="2 learning rates"):
        strategy.train(stub_benchmark().train_stream[2], eval_streams=[])


def test_schedule__shortest_run_that_fits():
    rates = rates_of_groups()
    trained(1, budget_iterations=3, warmup_iterations=2, extra=[rates])
    assert rates.seen == [[5e-3], [1e-2], [1e-2]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": 0}, "lr=0"),
        ({"lr": []}, "one per experience"),
        ({"lr": 1.0, "optimizer": torch.optim.SGD}, "not both"),
    ],
    ids=str,
)
def test_wrong_rates__raise(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_own_optimizer_and_length__replace_the_defaults():
    strategy = small(lr=None, optimizer=lambda g: torch.optim.SGD(g, lr=0.3))
    assert isinstance(strategy.optimizer, torch.optim.SGD)
    net = model()
    given = torch.optim.SGD(net.parameters(), lr=0.1)
    assert small(net=net, lr=None, optimizer=given).optimizer is given
    strategy = small(budget_iterations=None, train_epochs=2)
    assert not strategy.compute.limited
    strategy = small(budget_iterations=None, budget_samples=40)
    assert strategy.compute.samples == 40
    assert small(budget_iterations=None).compute.iterations == 1001


def variants():
    return zscl_variants(IMAGES, TEXTS, interval=2, batch_size=4, text_length=3)


@pytest.mark.parametrize("name", NAMES)
def test_variants__each_trains_and_differs_from_the_others(name):
    plugins = variants()[name]()
    strategy = trained(2, plugins=plugins)
    plain = trained(2, plugins=variants()["continual-ft"]())
    if name != "continual-ft":
        assert_other_weights(strategy.model, plain.model)
    assert torch.equal(strategy.model.logit_scale, stub_model().logit_scale)
    kinds = {
        "continual-ft": set(),
        "wc": set(),
        "we": set(),
        "wise-ft": set(),
        "lwf": {"previous"},
        "lwf-vr": {"previous"},
        "zscl*": {"initial"},
        "zscl": {"initial"},
    }
    assert set(strategy.teachers.teachers) == kinds[name]


def test_variants__are_all_there_and_fresh():
    rows = variants()
    assert list(rows) == NAMES
    for make in rows.values():
        first, second = make(), make()
        assert not {id(p) for p in first} & {id(p) for p in second}


def test_reference_data__shared_by_runs_are_bound_to_each_model():
    source = ReferenceImages(IMAGES)
    for noise in (0.0, 1.0):
        strategy = trained(1, ZSCL, reference_images=source, net=model(noise=noise))
        assert source.transform == "model"
        assert strategy.distillation.images.transform.deterministic


def test_variants__zscl_is_the_strategy():
    ours = trained(2, plugins=variants()["zscl"]())
    assert_same_weights(ours.model, trained(2, ZSCL).model)
    starred = trained(2, plugins=variants()["zscl*"]())
    strategy = trained(2, ZSCL, consolidation_weight=0.0)
    assert_same_weights(starred.model, strategy.model)
