"""CLL-CLIP as a strategy: losses, teachers, temperature, resuming."""

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.losses import cross_modal_loss
from avalanche_clip.models import find_token_embedding
from avalanche_clip.training import CLL_VARIANTS, CLLCLIP
from avalanche_clip.training.methods.cll_clip.student import encode_by_length
from avalanche_clip.training.plugins import BestEpochPlugin, PatchingPlugin
from tests.helpers import (
    At,
    assert_same_weights,
    quiet_evaluator,
    train_stream,
    weights,
)
from tests.training.languages import (
    WORDS,
    adamw,
    language_strategy,
    language_stream,
    tiny_model,
)

ENGLISH = {100 * c + k: WORDS["en"][k % 5] for c in range(3) for k in range(12)}


class Look:
    """Keep loss, batch and temperature of each step."""

    stateless = True

    def __init__(self):
        self.steps, self.rates, self.starts = [], [], []

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            self.starts.append(strategy.model.cross_modal.tau.item())
        self.rates.append(strategy.optimizer.param_groups[-1]["lr"])

    def before_backward(self, strategy, **kwargs):
        raw = strategy.model.encode_text(strategy.mb_x["text"], normalize=False)
        self.steps.append(
            {
                "loss": strategy.loss.item(),
                "raw": raw.detach(),
                "tau": strategy.model.cross_modal.tau.item(),
                "batch": dict(strategy.mb_x),
                "logits": strategy.mb_output.detach(),
            }
        )


def train(steps=1, *, features=True, model=None, **options):
    model = model or tiny_model()
    benchmark = language_stream(model, features=features)
    look = Look()
    strategy = language_strategy(model, plugins=[look], **options)
    train_stream(strategy, benchmark, steps)
    return strategy, look, benchmark


def test_loss__is_the_weighted_sum_of_both_terms():
    _, look, _ = train(2, cross_lingual_weight=2.0, cross_modal_weight=0.5)
    for step in look.steps:
        batch = step["batch"]
        expected = 2.0 * F.mse_loss(step["raw"], batch["teacher_text"])
        expected = expected + 0.5 * cross_modal_loss(
            step["raw"],
            batch["teacher_image"],
            step["tau"],
            image_ids=batch["targets"],
        )
        assert step["loss"] == pytest.approx(expected.item(), rel=1e-5)
        scores = (
            F.normalize(batch["teacher_image"], dim=-1) @ F.normalize(step["raw"]).T
        )
        torch.testing.assert_close(
            step["logits"], scores / step["tau"], rtol=1e-4, atol=1e-5
        )


def test_training__runs_no_image_tower():
    model = tiny_model()
    calls = []
    model.clip.visual.register_forward_hook(lambda *a: calls.append(1))
    strategy, _, benchmark = train(2, model=model)
    assert not calls
    assert "cross_modal.tau" not in model.state_dict()
    report = strategy.compute.report({"image": 10**9, "text": 1})
    assert report["total_macs"] < 10**6 and report["samples"] == [16, 16]
    strategy.eval(benchmark.test_stream[:1])
    assert calls


def test_evaluation__uses_stored_image_features_where_there_are_some():
    model = tiny_model()
    calls = []
    model.clip.visual.register_forward_hook(lambda *a: calls.append(1))
    strategy, _, benchmark = train(1, model=model)
    strategy.eval(benchmark.train_stream[:1])
    assert not calls


def test_temperature__starts_anew_and_stays_in_its_range():
    strategy, look, _ = train(3, optimizer=lambda g: torch.optim.AdamW(g, lr=0.3))
    assert look.starts == pytest.approx([0.07] * 3)
    seen = [step["tau"] for step in look.steps]
    assert min(seen) >= 0.001 - 1e-9 and max(seen) <= 0.5 and len(set(seen)) > 3
    group = next(
        g
        for g in strategy.optimizer.param_groups
        if any(p is strategy.model.cross_modal.tau for p in g["params"])
    )
    assert group["weight_decay"] == 0.0


def test_warm_up__first_step_has_learning_rate_zero():
    _, look, _ = train(2, budget_iterations=10, warmup_fraction=0.4, optimizer=adamw)
    expected = [0.0, 0.0025, 0.005, 0.0075] + [0.01] * 6
    assert look.rates == pytest.approx(expected * 2)


@pytest.mark.parametrize("given", [{}, {"device": None, "param_groups": None}])
def test_defaults__are_the_papers(given):
    strategy = CLLCLIP(model=tiny_model(), evaluator=quiet_evaluator(), **given)
    options = strategy.optimizer.defaults
    assert (options["lr"], options["eps"], options["betas"]) == (
        5e-5,
        1e-6,
        (0.9, 0.999),
    )
    assert (strategy.train_mb_size, strategy.train_epochs) == (128, 3)
    assert strategy.clip_grad_norm == 1.0 and strategy.warmup_fraction == 0.1
    plugin = strategy.expansion
    assert (plugin.vocab_size, plugin.init, plugin.regularize) == (10_000, "teir", "gd")
    assert plugin.weight_decay == 0.05 and plugin.scale_target == "gradient"


# ------------------------------------------------------------------- teachers
def test_teacher__towers_run_where_the_data_have_no_features():
    model = tiny_model()
    initial = tiny_model().eval()
    _, look, _ = train(2, features=False, model=model, teacher_captions=ENGLISH)
    for step in look.steps:
        batch = step["batch"]
        image = initial.encode_image(batch["image"], normalize=False)
        captions = [ENGLISH[int(k)] for k in batch["sample_id"]]
        text = initial.encode_text(initial.tokenizer(captions), normalize=False)
        torch.testing.assert_close(batch["teacher_image"], image)
        torch.testing.assert_close(batch["teacher_text"], text)


def test_teacher__english_captions_are_asked_for():
    with pytest.raises(ValueError, match="teacher_captions"):
        train(1, features=False)
    train(1, features=False, cross_lingual_weight=0.0)


def test_cross_lingual_alone__has_no_temperature():
    model = tiny_model()
    benchmark = language_stream(model)
    strategy = language_strategy(model, **CLL_VARIANTS["cross-lingual-only"])
    train_stream(strategy, benchmark, 1)
    assert not hasattr(model, "cross_modal")


# ------------------------------------------------------------------- variants
@pytest.mark.parametrize("name", CLL_VARIANTS)
def test_variants__run(name):
    model = tiny_model()
    benchmark = language_stream(model)
    options = {**CLL_VARIANTS[name]}
    if "vocab_size" in options:
        options["vocab_size"] = 330
    before = weights(model)
    strategy = language_strategy(model, **options)
    train_stream(strategy, benchmark, 2)
    strategy.eval(benchmark.test_stream)
    after = weights(model)
    if name == "frozen":
        assert_same_weights(before, after)
        return
    assert len(after["clip.token_embedding.weight"]) > 3584
    moved = not torch.equal(
        after["clip.ln_final.weight"], before["clip.ln_final.weight"]
    )
    assert moved is (name == "train-text")
    assert torch.equal(
        after["clip.visual.conv1.weight"], before["clip.visual.conv1.weight"]
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision__stays_finite_and_freezes_rows(precision):
    model = tiny_model()
    start = model.clip.token_embedding.weight.detach().clone()
    train(2, precision=precision, model=model)
    table = find_token_embedding(model).weight
    assert torch.isfinite(table).all()
    unused = find_token_embedding(model).usage[:3584] == 0
    assert torch.equal(table[:3584][unused], start[unused])


# -------------------------------------------------------------- length groups
@pytest.mark.parametrize("groups", [1, 2, 3, 20])
def test_length_groups__agree_with_one_pass(groups):
    model = tiny_model().double()
    text = model.tokenizer([*WORDS["de"], *WORDS["el"], "a"])
    text[-1] = 5  # without an end token
    whole = model.encode_text(text, normalize=False)
    found = encode_by_length(model, text, groups)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
    one = encode_by_length(model, text[:1], groups)
    assert one.shape == (1, whole.shape[1])


def test_length_groups__train_to_the_same_table():
    tables = []
    for groups in (1, 3):
        strategy, look, _ = train(2, length_groups=groups)
        tables.append(find_token_embedding(strategy.model).weight.detach())
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        (PatchingPlugin([0.5, 0.25], validation="test"), {"budget_iterations": 2}),
        (BestEpochPlugin("test"), {"budget_iterations": 2, "train_epochs": 2}),
    ],
    ids=lambda given: type(given).__name__,
)
def test_search__on_a_stream_that_was_prepared_before_the_vocabulary_grew(
    plugin, options
):
    model = tiny_model()
    benchmark = language_stream(model)
    strategy = language_strategy(model, plugins=[plugin], **options)
    before = find_token_embedding(model).weight.detach().clone()
    train_stream(strategy, benchmark, 2)
    assert len(plugin.chosen) == 2
    assert len(find_token_embedding(model).weight) > len(before)


def test_patching__mixes_all_rows_of_a_grown_table():
    """Rows that have just grown with the values that their training started from."""
    seen = [
        At(hook, lambda s: find_token_embedding(s.model).weight.detach().clone())
        for hook in ("before_training_iteration", "after_training_epoch")
    ]
    model = tiny_model()
    plugins = [PatchingPlugin([0.25]), *seen]
    strategy = language_strategy(model, plugins=plugins, train_epochs=1)
    train_stream(strategy, language_stream(model), 2)
    start, trained = seen[0].seen[4], seen[1].seen[1]
    found = find_token_embedding(model).weight
    torch.testing.assert_close(found, torch.lerp(start, trained, 0.25))
    assert len(found) > len(seen[1].seen[0])
