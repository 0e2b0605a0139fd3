"""Runs with expert adapters that were stopped, and adapters stored alone."""

import copy

import pytest
import torch

from avalanche_clip.models.moe.adapters import load_moe_adapters
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import MoEAdaptersPlugin
from avalanche_clip.training.runs.checkpoint_plugin import CheckpointPlugin, checkpoints
from avalanche_clip.training.runs.files import CheckpointError, read_state
from avalanche_clip.training.runs.resume import load_state
from avalanche_clip.training.supervised import MoEAdapters
from avalanche_clip.training.templates import ClassNameTemplate
from tests.training import moe_runs
from tests.training.moe_runs import ADAPTERS
from tests.training.small_runs import StopPlugin

pytestmark = pytest.mark.slow

KINDS = ("domains", "pairs", "strategy")


def build(kind="domains", folder=None, stop=None, *, model=None, **given):
    """A strategy and its benchmark; augmentation, dropout and noise are on."""
    model = model or moe_runs.vit()
    extra = [] if folder is None else [CheckpointPlugin(folder, every_iterations=2)]
    extra += [StopPlugin(train=stop)] if stop else []
    settings = {
        "selector": moe_runs.selector(),
        "reference_images": moe_runs.reference(),
        "balance_weight": 0.5,
        **given,
    }
    options = moe_runs.options(seed=3)
    if kind == "strategy":
        options.pop("optimizer")
        selector, images = settings.pop("selector"), settings.pop("reference_images")
        strategy = MoEAdapters(
            model=model,
            selector=selector,
            reference_images=images,
            plugin_options=settings,
            plugins=extra,
            lr=[1e-2, 5e-3, 2e-2],
            warmup_iterations=1,
            **ADAPTERS,
            **options,
        )
        return strategy, moe_runs.domains(model, noise=0.1)
    cls = Sequential if kind == "pairs" else ClassNameTemplate
    options |= {"schedule": "constant"}
    if kind == "pairs":
        options["warmup_iterations"] = 0
    plugin = MoEAdaptersPlugin(ADAPTERS, **settings)
    strategy = cls(model=model, plugins=[*extra, plugin], **options)
    stream = moe_runs.pairs if kind == "pairs" else moe_runs.domains
    return strategy, stream(model, noise=0.1)


def go_on(strategy, benchmark, start=0):
    """Train and evaluate the rest of the stream; returns all evaluations."""
    found = []
    for experience in list(benchmark.train_stream)[start:]:
        strategy.train(experience, eval_streams=[])
        found.append(strategy.eval(benchmark.test_stream))
    return found


def plugin_of(strategy):
    return next(p for p in strategy.plugins if isinstance(p, MoEAdaptersPlugin))


@pytest.fixture(scope="module")
def whole():
    """Uninterrupted runs, each made once."""
    made = {}

    def get(kind):
        if kind not in made:
            strategy, benchmark = build(kind)
            made[kind] = (strategy, go_on(strategy, benchmark))
        return made[kind]

    return get


def test_checkpoint__holds_no_frozen_base_weights(tmp_path):
    for kind in KINDS:
        strategy, benchmark = build(kind, tmp_path / kind)
        strategy.train(benchmark.train_stream[0], eval_streams=[])
        state = read_state(checkpoints(tmp_path / kind)[-1])
        stored = [k for k in state["model"] if k.startswith("clip.")]
        parameters = dict(strategy.model.named_parameters())
        assert stored and all(".moe." in k for k in stored if k in parameters)
        assert state["base"] is not None
        other, benchmark = build(kind, model=moe_runs.vit(seed=1))
        with pytest.raises(CheckpointError, match="frozen weights"):
            load_state(other, checkpoints(tmp_path / kind)[-1], benchmark)


def test_load__selector_must_be_there_in_both_runs(tmp_path):
    strategy, benchmark = build("domains", tmp_path)
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    bare, benchmark = build(selector=None, reference_images=None)
    with pytest.raises(CheckpointError, match="MoEAdaptersPlugin.selector is"):
        load_state(bare, checkpoints(tmp_path)[-1], benchmark)


def test_adapters_alone__restore_outputs_on_a_fresh_base(whole, tmp_path):
    strategy, _ = whole("domains")
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
    strategy, _ = whole("domains")
    path = tmp_path / "adapters.safetensors"
    strategy.model.moe_adapters.save(path)
    model = moe_runs.vit()
    load_moe_adapters(model, path)
    chosen = moe_runs.selector(model=model)
    chosen.load_state_dict(
        copy.deepcopy(plugin_of(strategy).auto_selector.state_dict())
    )
    plugin = MoEAdaptersPlugin(selector=chosen)
    after = ClassNameTemplate(model=model, plugins=[plugin], **moe_runs.options())
    benchmark = moe_runs.domains(model, 4)
    after.train(benchmark.train_stream[3], eval_streams=[])
    assert plugin.routers == {"classes 9,10,11": 3}
    assert model.moe_adapters.learned == [0, 1, 2, 3] and chosen.num_tasks == 4
