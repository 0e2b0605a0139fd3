from functools import partial

import pytest
import torch

from avalanche_clip import distributed
from avalanche_clip.common.randomness import rng_state
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training.plugins import VocabularyReplayPlugin
from avalanche_clip.training.supervised import Sequential, VRLwF
from avalanche_clip.training.templates.distillation import own_share
from avalanche_clip.training.templates.plan import learning_rate
from tests.helpers import (
    adamw,
    assert_other_weights,
    assert_same_weights,
    build,
    fit,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.processes import run_in_processes
from tests.training import small_runs as runs
from tests.training.methods.vr_lwf.test_plugin import Each, plugin_of, replayed

SETTINGS = {"num_texts": 20, "text_length": 3}
SMALL = {"num_texts": 20, "replay": {"text_length": 3}}


def test_strategy__is_the_template_with_the_plugin():
    strategy = fit(VRLwF, image_weight=5.0, text_weight=5.0, **SMALL)
    (plugin,) = [p for p in strategy.plugins if isinstance(p, VocabularyReplayPlugin)]
    assert (plugin.num_texts, plugin.text_length) == (20, 3)
    assert (plugin.image_weight, plugin.text_weight) == (5.0, 5.0)
    same = VocabularyReplayPlugin(
        num_texts=20, text_length=3, image_weight=5.0, text_weight=5.0
    )
    other = fit(Sequential, plugins=[same], schedule="cosine")
    assert_same_weights(strategy.model, other.model)
    assert_other_weights(strategy.model, fit(VRLwF, **SMALL).model)


def test_defaults__are_those_of_the_source():
    model = stub_model()
    strategy = VRLwF(
        model=model, evaluator=quiet_evaluator(), budget_iterations=2, **SMALL
    )
    assert strategy.train_mb_size == 64 and strategy.schedule == "cosine"
    with pytest.warns(UserWarning, match="fewer than a batch"):
        train_stream(strategy, stub_benchmark(model=model), 2)
    (group,) = strategy.optimizer.param_groups
    assert type(strategy.optimizer) is torch.optim.AdamW
    assert group["initial_lr"] == 1e-5 and group["weight_decay"] == 0
    assert group["betas"] == (0.9, 0.999)
    assert len(group["params"]) == len(list(model.parameters())) - 1
    plugin = strategy.plugins[0]
    plain = VocabularyReplayPlugin()
    assert (plain.num_texts, plain.text_length, plain.temperature) == (1000, 10, 2.0)
    assert plugin.image_weight == plugin.text_weight == 1.0
    assert plugin.distill_batch == "same" and not plugin.allow_special
    assert plugin.freeze_logit_scale and not plugin.student_text


def test_own_optimizer_and_groups__are_kept():
    def rule(named):
        return [{"names": [n for n, _ in named], "weight_decay": 0.3}]

    strategy = fit(VRLwF, optimizer=None, param_groups=rule, **SMALL)
    (group,) = strategy.optimizer.param_groups
    assert group["weight_decay"] == 0.3 and group["initial_lr"] == 1e-5
    strategy = fit(VRLwF, **SMALL)
    assert [g["initial_lr"] for g in strategy.optimizer.param_groups] == [1e-2] * 2


def test_schedule__published_values():
    rates = [
        learning_rate("cosine", step, 1000, base=1e-5, warmup=100)
        for step in (0, 99, 100, 550, 1000)
    ]
    assert rates == pytest.approx([1e-7, 1e-5, 1e-5, 5e-6, 0], abs=1e-20)


def test_unknown_settings__raise():
    with pytest.raises(TypeError, match="number"):
        VRLwF(model=stub_model(), replay={"number": 3})
    with pytest.raises(TypeError, match="number"):
        VRLwF(model=stub_model(), number=3)


# ------------------------------------------------------------------- second batch
def test_second_batch__has_evaluation_transform_and_its_own_order():
    batches, training = [], []
    model = stub_model(noise=1.0)
    data = stub_benchmark(model=model)
    plugin = VocabularyReplayPlugin(**SETTINGS, distill_batch="separate")
    following = plugin._next_images

    def keep(strategy):
        batches.append(following(strategy))
        return batches[-1]

    plugin._next_images = keep
    look = Each("after_update", lambda s: training.append(s.mb_x["sample_id"]))
    run = {"budget_iterations": 6}
    fit(Sequential, data, 2, model=model, plugins=[plugin, look], **run)
    dataset = data.train_stream[1].dataset.eval()
    images = torch.stack([dataset[i][0] for i in range(12)])
    found = []
    for batch in batches:
        distance = torch.cdist(batch.flatten(1), images.flatten(1))
        assert distance.min(dim=1).values.max() < 1e-6
        found += distance.argmin(dim=1).tolist()
    # Two passes over twelve images, in another order than that of the training.
    assert sorted(found) == sorted([*range(12), *range(12)])
    assert found != (torch.cat(training) - training[0].min().item()).tolist()


@pytest.mark.parametrize("redraw", ["experience", "iteration"])
def test_global_generators__are_those_of_plain_training(redraw):
    def states(plugins):
        found = []

        class Note:
            def after_update(self, strategy, **kwargs):
                now = rng_state()
                found.append((now["torch"].tolist(), now["python"], str(now["numpy"])))

        model = stub_model(dropout=0.3, noise=0.2)
        data = stub_benchmark(model=model)
        fit(Sequential, data, 2, model=model, plugins=[*plugins, Note()])
        return found

    plugin = VocabularyReplayPlugin(
        **SETTINGS, distill_batch="separate", student_text=True, redraw=redraw
    )
    assert states([plugin]) == states([])


def test_second_batch__does_not_depend_on_workers():
    def once(**options):
        plugin = VocabularyReplayPlugin(**SETTINGS, distill_batch="separate")
        strategy = build(Sequential, plugins=[plugin])
        return train_stream(strategy, stub_benchmark(), 2, **options)

    plain = once()
    workers = once(num_workers=1, multiprocessing_context="fork")
    assert_same_weights(plain.model, workers.model)


@pytest.mark.parametrize("batch", ["same", "separate"])
@pytest.mark.parametrize("student_text", [False, True])
def test_accumulation__equals_the_big_batch(batch, student_text):
    def once(chunks):
        sgd = lambda groups: torch.optim.SGD(groups, lr=0.05)  # noqa: E731
        return replayed(
            distill_batch=batch,
            student_text=student_text,
            run={"optimizer": sgd, "accumulation_steps": chunks},
        ).model.state_dict()

    ours, expected = once(3), once(1)
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)
    assert_other_weights(expected, fit(Sequential, steps=2).model)


@pytest.mark.parametrize("batch", ["same", "separate"])
def test_bf16__stays_finite_and_close(batch):
    settings = {"distill_batch": batch, "student_text": True}
    run = {"precision": "bf16", "accumulation_steps": 2}
    model = replayed(3, run=run, **settings).model
    expected = replayed(3, **settings).model
    for ours, other in zip(model.parameters(), expected.parameters()):
        assert torch.isfinite(ours).all() and ours.dtype == torch.float32
        assert (ours - other).abs().max() < 0.2


# ------------------------------------------------------------------------- resume
RESUMED = {
    "same": {},
    "separate": {"distill_batch": "separate", "student_text": True},
    "redraw": {"redraw": "iteration", "teach_first_experience": True},
    "first": {"distill_batch": "separate", "teach_first_experience": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights that a run without the method ends with."""
    folder = tmp_path_factory.mktemp("plain")
    return weights(runs.go(folder, "Sequential", optimizer=adamw)[0].model)


@pytest.mark.parametrize("name", RESUMED)
def test_resume__inside_an_experience_ends_the_same(name, plain, tmp_path, monkeypatch):
    replay = {**RESUMED[name], "text_length": 3}
    options = {"method": "VRLwF", "num_texts": 20, "replay": replay}
    options.update(run={"streams": ("test",)}, optimizer=adamw)
    whole = runs.go(tmp_path / "whole", **options)
    stop = 3 if name == "first" else 8
    with pytest.raises(runs.Interrupted):
        runs.go(tmp_path / "part", stop={"train": stop}, **options)
    calls = []
    encode = VocabularyReplayPlugin._teacher_texts

    def counted(self, strategy, ids):
        calls.append(strategy.experience_index)
        return encode(self, strategy, ids)

    monkeypatch.setattr(VocabularyReplayPlugin, "_teacher_texts", counted)
    resumed = runs.go(tmp_path / "part", resume=True, **options)
    runs.assert_same_runs(whole, resumed)
    assert_other_weights(whole[0].model, plain)
    if name in ("same", "separate"):
        # The features of the interrupted experience come from the checkpoint.
        assert calls == [2]


# -------------------------------------------------------------------- two processes
CASES = {
    "same": {},
    "separate": {"distill_batch": "separate"},
    "texts": {"student_text": True, "num_texts": 21},
    "redraw": {"redraw": "iteration", "text_weight": 0.0},
    "chunks": {
        "distill_batch": "separate",
        "student_text": True,
        "run": {"accumulation_steps": 2},
    },
}


def small_run(case, batch):
    settings = dict(CASES[case])
    options = settings.pop("run", {})
    losses = []
    look = Each("after_backward", lambda s: losses.append(s.loss.detach()))
    model = stub_model()
    plugin = VocabularyReplayPlugin(**{**SETTINGS, **settings})
    strategy = build(
        Sequential,
        model,
        train_mb_size=batch,
        budget_iterations=4,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.2, momentum=0.9),
        plugins=[plugin, look],
        **options,
    )
    train_stream(strategy, stub_benchmark((16, 16), model=model))
    return {
        "weights": weights(model),
        "losses": torch.stack(losses),
        "spent": strategy.compute.state_dict(),
    }


def shares():
    return own_share(torch.arange(5)).tolist()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of both processes, which do all cases in one go."""
    jobs = {case: partial(small_run, case, 4) for case in CASES}
    folder = tmp_path_factory.mktemp("pool")
    return run_in_processes({"share": shares, **jobs}, folder)


@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_whole_batch(case, pool):
    first, second = pool[case]
    whole = small_run(case, 8)
    assert torch.equal(first["losses"], second["losses"])
    torch.testing.assert_close(first["losses"], whole["losses"], rtol=1e-4, atol=1e-4)
    for name, value in whole["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(
            first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name
        )
    if case in ("separate", "chunks"):
        assert first["spent"] == whole["spent"]


def test_own_share__covers_all_rows(pool):
    assert pool["share"] == [[0, 1, 2], [3, 4, 0]]
    assert torch.equal(own_share(torch.arange(5)), torch.arange(5))
    assert not distributed.is_distributed()


def test_tiny_emoji__trains_with_short_rows():
    from avalanche_clip.benchmarks import prepare_benchmark, tic_emoji

    model = create_dual_encoder("tiny-emoji", pretrained="emoji-2010")
    data = prepare_benchmark(tic_emoji(first_step=1), model)
    scale, shapes = model.logit_scale.item(), []
    plugin = VocabularyReplayPlugin(num_texts=50, distill_batch="separate")

    def look(strategy):
        ids = plugin_of(strategy).token_ids
        shapes.append(tuple(ids.shape))
        assert (ids[:, 0] == 3582).all() and (ids[:, -1] == 3583).all()
        assert (ids[:, 1:-1] < 3582).all()

    strategy = build(
        Sequential,
        model,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        budget_iterations=2,
        train_mb_size=16,
        plugins=[plugin, Each("after_update", look, experience=0)],
    )
    start = weights(model)
    train_stream(strategy, data, 1)
    # The preset has weights, so the first experience is taught.
    assert shapes == [(50, 12)] * 2
    assert model.logit_scale.item() == scale
    assert_other_weights(model, start)
    for parameter in model.parameters():
        assert torch.isfinite(parameter).all()
