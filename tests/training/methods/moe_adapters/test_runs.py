"""Runs with expert adapters: resumption, teachers, failures, storage."""

import copy

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin

from avalanche_clip.common.state_files import CheckpointError, read_state
from avalanche_clip.models.moe.adapters import load_moe_adapters
from avalanche_clip.training.plugins import MoEAdaptersPlugin
from avalanche_clip.training.runs.checkpoint_plugin import CheckpointPlugin, checkpoints
from avalanche_clip.training.runs.resume import load_state
from avalanche_clip.training.supervised import MoEAdapters
from avalanche_clip.training.templates import ClassNameTemplate
from avalanche_clip.training.templates.settings import strategy_settings
from tests.helpers import At, train_stream
from tests.training import moe_runs
from tests.training.moe_runs import ADAPTERS
from tests.training.small_runs import Interrupted, StopPlugin

pytestmark = pytest.mark.slow


def build(*plugins, adapters=ADAPTERS, selector=None, model=None, **given):
    model = model or moe_runs.vit()
    images = None if selector is None else moe_runs.reference()
    moe = MoEAdaptersPlugin(adapters, selector=selector, reference_images=images)
    strategy = ClassNameTemplate(
        model=model, plugins=[*plugins, moe], **moe_runs.options(**given)
    )
    return strategy, moe_runs.domains(model), moe


def stored(folder, **given):
    strategy, benchmark, _ = build(CheckpointPlugin(folder), **given)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    return checkpoints(folder)[-1]


def test_resume__other_adapters_are_refused(tmp_path):
    path = stored(tmp_path)
    for change in ({"top_k": 1}, {"scale": 5.0}, {"router_input": "mean"}):
        strategy, benchmark, _ = build(adapters={**ADAPTERS, **change})
        with pytest.raises(CheckpointError, match=next(iter(change))):
            load_state(strategy, path, benchmark)


def test_resume__another_selector_is_refused(tmp_path):
    path = stored(tmp_path, selector=moe_runs.selector(threshold=0.01))
    for change in ({"threshold": 0.5}, {"granularity": "batch"}, {"seed": 7}):
        chosen = moe_runs.selector(**{"threshold": 0.01, **change})
        strategy, benchmark, _ = build(selector=chosen)
        with pytest.raises(CheckpointError, match=next(iter(change))):
            load_state(strategy, path, benchmark)


def test_settings__show_adapters_and_selector():
    strategy, _, _ = build(selector=moe_runs.selector(seed=5))
    settings = strategy_settings(strategy)["plugins"]["0 MoEAdaptersPlugin"]
    assert settings["adapters"] == ADAPTERS
    assert settings["selector"]["seed"] == 5
    assert settings["selector"]["task_iterations"] == 150


class Ask(SupervisedPlugin):
    """Asks for a teacher late, and notes routers of teacher and model."""

    stateless = True

    def __init__(self, kind, first):
        super().__init__()
        self.kind, self.first, self.seen = kind, first, []

    def before_training_exp(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter >= self.first:
            strategy.teachers.get(self.kind)

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter >= self.first:
            teacher = strategy.teachers.get(self.kind).model
            self.seen.append(teacher.moe_adapters.routers["image"])


def test_teachers__late_previous_has_the_router_of_before():
    ask = Ask("previous", 1)
    strategy, benchmark, _ = build(ask)
    for number in (0, 1):
        strategy.train(benchmark.train_stream[number], eval_streams=[])
    assert set(ask.seen) == {0} and strategy.model.moe_adapters.active_router == 1


def test_teachers__average_follows_the_routers():
    ask = Ask("ema", 0)
    strategy, benchmark, _ = build(ask)
    for number in (0, 1, 0):
        strategy.train(benchmark.train_stream[number], eval_streams=[])
    assert ask.seen == [0] * 5 + [1] * 5 + [0] * 5


def test_filler_prompts__are_not_counted():
    def counts(strategy):
        adapters = strategy.model.moe_adapters
        return {t: adapters.adapters(t)[0].counts for t in adapters.towers}

    note = At("after_training_iteration", counts)
    strategy, benchmark, _ = build(note, accumulation_steps=6)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    found = note.seen[0]
    assert found["image"].sum() == 6 * 2 and found["text"].sum() == 3 * 2


def test_failing_constructor__leaves_a_plain_model():
    model = moe_runs.vit()
    common = moe_runs.options()
    common.pop("optimizer")
    with pytest.raises(ValueError, match="count=9"):
        MoEAdapters(
            model=model,
            selector=None,
            plugin_options={"count": 9},
            **ADAPTERS,
            **common,
        )
    assert model.moe_adapters is None
    assert all(p.requires_grad for p in model.parameters())
    MoEAdapters(model=model, selector=None, **ADAPTERS, **common)
    with pytest.raises(ValueError, match="num_experts=6, but 5"):
        MoEAdapters(model=model, selector=None, num_experts=5, **common)


def test_online_stream__is_refused():
    strategy, benchmark, _ = build()
    online = split_online_stream(benchmark.train_stream, experience_size=4)
    with pytest.raises(ValueError, match="online stream"):
        strategy.train(next(iter(online)), eval_streams=[])


def test_routing__is_noted_after_an_aborted_training():
    strategy, benchmark, plugin = build(StopPlugin(train=2))
    with pytest.raises(Interrupted):
        strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.eval(benchmark.test_stream)
    assert plugin.routing["test"]


# ------------------------------------------------------------ stored, whole and alone
def test_checkpoint__holds_no_frozen_base_weights(tmp_path):
    path = stored(tmp_path, selector=moe_runs.selector())
    strategy, _, _ = build()
    state = read_state(path)
    kept = [k for k in state["model"] if k.startswith("clip.")]
    parameters = dict(strategy.model.named_parameters())
    assert kept and all(".moe." in k for k in kept if k in parameters)
    assert state["base"] is not None
    bare, benchmark, _ = build()  # without the selector
    with pytest.raises(CheckpointError, match="MoEAdaptersPlugin.selector is"):
        load_state(bare, path, benchmark)


@pytest.fixture(scope="module")
def whole():
    """A strategy that has learned three domains, and its plugin."""
    strategy, benchmark, plugin = build(selector=moe_runs.selector())
    return train_stream(strategy, benchmark), plugin


def test_adapters_alone__restore_outputs_on_a_fresh_base(whole, tmp_path):
    strategy, _ = whole
    path = tmp_path / "adapters.safetensors"
    moe = strategy.model.moe_adapters
    moe.save(path)
    fresh = moe_runs.vit()
    loaded = load_moe_adapters(fresh, path)
    images = moe_runs.pictures(torch.arange(4), 7)
    tokens = fresh.tokenizer(["ab", "cd"])
    for model in (fresh, strategy.model):
        model.eval()
    for router in (-1, 0, 1, 2, torch.tensor([2, -1, 0, 1])):
        text = router if isinstance(router, int) else 1
        with torch.no_grad():
            with moe.using_router(image=router, text=text):
                expected = strategy.model.encode_image(images)
                words = strategy.model.encode_text(tokens)
            with loaded.using_router(image=router, text=text):
                assert torch.equal(fresh.encode_image(images), expected)
                assert torch.equal(fresh.encode_text(tokens), words)
    other = moe_runs.vit(seed=1)
    with pytest.raises(ValueError, match="other weights"):
        load_moe_adapters(other, path)
    assert getattr(other, "moe_adapters", None) is None


def test_loaded_adapters_and_selector__go_on_with_the_stream(whole, tmp_path):
    """A later run with the stored parts alone learns the next domain."""
    strategy, plugin = whole
    path = tmp_path / "adapters.safetensors"
    strategy.model.moe_adapters.save(path)
    model = moe_runs.vit()
    load_moe_adapters(model, path)
    chosen = moe_runs.selector(model=model)
    chosen.load_state_dict(copy.deepcopy(plugin.auto_selector.state_dict()))
    plugin = MoEAdaptersPlugin(selector=chosen)
    after = ClassNameTemplate(model=model, plugins=[plugin], **moe_runs.options())
    benchmark = moe_runs.domains(model, 4)
    after.train(benchmark.train_stream[3], eval_streams=[])
    assert plugin.routers == {"classes 9,10,11": 3}
    assert model.moe_adapters.learned == [0, 1, 2, 3] and chosen.num_tasks == 4
