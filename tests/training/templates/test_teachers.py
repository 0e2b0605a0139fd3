import pytest
import torch

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.training import ContrastiveLwF, Sequential
from avalanche_clip.training.plugins import (
    ConstantCosinePlugin,
    ContrastiveLwFPlugin,
    RestartPlugin,
)
from avalanche_clip.training.templates import teachers
from avalanche_clip.training.templates.teachers import EMA_DECAY
from tests.helpers import (
    At,
    Pairs,
    assert_other_weights,
    assert_same_weights,
    build,
    fit,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.training.templates.test_optim import GrowingEncoder


class _Ask:
    """Asks for a teacher and keeps what it saw."""

    def __init__(self, kind="previous", **options):
        self.kind, self.options = kind, options
        self.start, self.passes = [], []

    def before_training_exp(self, strategy, **kwargs):
        teacher = strategy.teachers.get(self.kind, **self.options)
        self.start.append(weights(teacher.model))
        teacher.forward_passes = 0

    def before_backward(self, strategy, **kwargs):
        teacher = strategy.teachers.get(self.kind)
        first = teacher.features(strategy.mb_x)
        assert teacher.features(strategy.mb_x) is first
        assert not first.image_features.requires_grad

    def after_training_exp(self, strategy, **kwargs):
        self.passes.append(strategy.teachers.get(self.kind).forward_passes)


def test_previous__is_renewed_from_each_deployed_model():
    ask = _Ask()
    model = stub_model()
    expected = [weights(model)]
    strategy = build(Sequential, model, plugins=[ask])
    for experience in list(stub_benchmark().train_stream)[:2]:
        strategy.train(experience, eval_streams=[])
        expected.append(weights(model))
    for ours, theirs in zip(ask.start, expected, strict=False):
        assert_same_weights(ours, theirs)
    assert_other_weights(*ask.start)


def test_teacher__is_frozen_in_evaluation_mode_and_untouched_by_training():
    ask = _Ask()
    strategy = fit(Sequential, steps=1, plugins=[ask])
    teacher = strategy.teachers.get("previous").model
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert_same_weights(teacher, ask.start[0])
    assert_other_weights(teacher, strategy.model)


def test_two_plugins__share_one_teacher_and_one_pass_per_batch():
    first, second = _Ask(), _Ask()
    strategy = fit(Sequential, steps=2, plugins=[first, second])
    assert list(strategy.teachers.teachers) == ["previous"]
    assert second.passes == [5, 5]


def test_initial__keeps_the_first_weights():
    ask = _Ask("initial")
    fit(Sequential, steps=2, plugins=[ask])
    assert_same_weights(ask.start[1], stub_model())


def test_previous__asked_for_in_training_raises():
    late = At("before_backward", lambda s: s.teachers.get("previous"))
    with pytest.raises(ValueError, match="previous model is gone"):
        fit(Sequential, plugins=[late])


def test_ema__follows_the_weights():
    model = stub_model()
    strategy = build(Sequential, model, plugins=[_Ask("ema")])
    expected = weights(model)
    path = At("after_update", lambda strategy: weights(strategy.model))
    strategy.plugins.append(path)
    train_stream(strategy, stub_benchmark(), 1)
    for point in path.seen:
        expected = {
            k: EMA_DECAY * expected[k] + (1 - EMA_DECAY) * v for k, v in point.items()
        }
    for name, value in strategy.teachers.get("ema").model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_ema__grows_with_the_model_and_keeps_its_values():
    strategy = build(
        Sequential, GrowingEncoder(), plugins=[_Ask("ema")], train_mb_size=6
    )
    train_stream(strategy, stub_benchmark(), 1)
    before = strategy.teachers.get("ema").model.token.weight.clone()
    strategy.train(stub_benchmark().train_stream[1], eval_streams=[])
    after = strategy.teachers.get("ema").model.token.weight
    assert after.shape == (36, 8)
    assert (after[:34] - before).abs().max() < (
        strategy.model.token.weight[:34] - before
    ).abs().max()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", ["restart", "trunk"])
def test_previous__is_the_deployed_model_whatever_the_order_of_plugins(order, other):
    options = {}
    plugin = RestartPlugin()
    if other == "trunk":
        plugin, options = ConstantCosinePlugin(), {"schedule": "const-cosine"}
    plugins = [plugin, ContrastiveLwFPlugin()][::order]
    strategy = build(Sequential, plugins=plugins, **options)
    train_stream(strategy, stub_benchmark(), 1)
    deployed = weights(strategy.model)
    strategy.train(stub_benchmark().train_stream[1], eval_streams=[])
    assert_same_weights(strategy.teachers.get("previous").model, deployed)


def lwf_run(monkeypatch, limit, noise=0.0, iterations=9):
    monkeypatch.setattr(teachers, "CACHE_BYTES", limit)
    model = stub_model(noise=noise)
    strategy = build(ContrastiveLwF, model, budget_iterations=iterations)
    train_stream(strategy, stub_benchmark(model=model), 2)
    return strategy


def test_image_cache__gives_the_run_without_it(monkeypatch):
    cached, plain = lwf_run(monkeypatch, 10**6), lwf_run(monkeypatch, 0)
    table = cached.teachers.get("previous").table
    assert table is not None and len(table.held) == table.size
    assert table.rows.shape == (12, 9)
    assert plain.teachers.get("previous").table is None
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(cached.model.state_dict()[name], value)
    spent = [s.compute.experiences[1]["teacher"]["images"] for s in (cached, plain)]
    assert spent == [12, 36]


def test_image_cache__is_off_without_sample_ids():
    groups = [k % 10 for k in range(24)]
    data = make_image_text_dataset(
        Pairs(groups, 0, 1),
        targets=groups,
        timestamps=[0.0] * 12 + [1.0] * 12,
        in_item=("targets",),
    )
    model = stub_model()
    benchmark = prepare_benchmark(time_stamped_benchmark(data, boundaries=[1.0]), model)
    strategy = train_stream(build(ContrastiveLwF, model), benchmark)
    teacher = strategy.teachers.get("previous")
    assert teacher.table is None and teacher.forward_passes == 5


def test_image_cache__is_off_for_random_transforms(monkeypatch):
    strategy = lwf_run(monkeypatch, 10**6, noise=0.1, iterations=2)
    assert not strategy.deterministic_images
    assert strategy.teachers.get("previous").table is None


def test_image_cache__features_equal_those_of_the_model(monkeypatch):
    strategy = build(ContrastiveLwF, stub_model(bias=True))

    @torch.no_grad()
    def both(strategy):
        if strategy.clock.train_exp_counter:
            teacher = strategy.teachers.get("previous")
            return teacher.features(strategy.mb_x), teacher.model(strategy.mb_x)

    compare = At("after_backward", both)
    strategy.plugins.append(compare)
    train_stream(strategy, stub_benchmark(), 2)
    assert len(compare.seen) == 10
    for ours, expected in compare.seen[5:]:
        assert ours.aux.keys() == expected.aux.keys()
        for left, right in zip(ours[:3], expected[:3], strict=True):
            torch.testing.assert_close(left, right)
        for key, value in expected.aux.items():
            torch.testing.assert_close(ours.aux[key], value)


def test_batch__is_let_go_after_training():
    strategy = fit(ContrastiveLwF, steps=2)
    assert strategy.teachers.get("previous")._key is None


def test_state__round_trip_keeps_weights_and_tables():
    strategy = fit(ContrastiveLwF, steps=2)
    other = build(ContrastiveLwF, stub_model(5))
    other.teachers.load_state_dict(strategy.teachers.state_dict())
    ours, theirs = (s.teachers.teachers["previous"] for s in (strategy, other))
    assert_same_weights(ours.model, theirs.model)
    assert torch.equal(ours.table.rows, theirs.table.rows)
    assert ours.table.held == theirs.table.held


def test_tokens_learned_later__are_refused_with_a_sentence():
    strategy = fit(Sequential, steps=1, plugins=[_Ask("initial")])
    strategy.model.tokenizer.vocab_size += 10
    batch = {"text": torch.tensor([[1, strategy.model.tokenizer.vocab_size - 1]])}
    with pytest.raises(ValueError, match="the 'initial' teacher knows .* has grown"):
        strategy.teachers.get("initial").features(batch)
