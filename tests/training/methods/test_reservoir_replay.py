"""Replay from a reservoir of samples (ER and DER)."""

import types

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import attribute_array
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.methods.reservoir_replay import (
    join_batches,
    raw_text_features,
    reservoir_slots,
)
from avalanche_clip.training.plugins import ReservoirReplayPlugin
from avalanche_clip.training.supervised import Sequential
from tests.helpers import (
    Recorder,
    assert_same_weights,
    build,
    stub_benchmark,
    stub_model,
    train_stream,
)


class Keep(Recorder):
    """Notes each batch and the plugin's state after each step."""

    def __init__(self):
        self.batches, self.losses, self.features = [], [], []

    def after_update(self, strategy, **kwargs):
        batch = strategy.mb_x
        self.batches.append({k: v.clone() for k, v in batch.items()})
        self.losses.append({k: float(v) for k, v in strategy.loss_terms.items()})
        self.features.append(raw_text_features(strategy.global_features).detach())


def run(plugin, sizes=(12, 12, 12), **options):
    keep = Keep()
    model = stub_model(noise=options.pop("noise", 0.0))
    benchmark = stub_benchmark(sizes, model=model, captions=3, valid=False)
    strategy = build(Sequential, model, plugins=[plugin, keep], **options)
    train_stream(strategy, benchmark)
    return strategy, keep, benchmark


# ------------------------------------------------------------------ reservoir
def test_slots__fill_then_replace_by_the_drawn_number():
    generator = np.random.default_rng(0)
    assert reservoir_slots(0, 3, 5, generator).tolist() == [0, 1, 2]
    slots = reservoir_slots(3, 500, 5, np.random.default_rng(1))
    assert slots[:2].tolist() == [3, 4]
    draws = np.random.default_rng(1).integers(0, np.arange(5, 503) + 1)
    expected = [int(r) if r < 5 else -1 for r in draws]
    assert slots[2:].tolist() == expected


def test_slots__hold_every_item_equally_often():
    size, total, runs = 4, 12, 4000
    held = np.zeros(total)
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        memory = [None] * size
        for start in range(0, total, 3):
            for k, slot in enumerate(reservoir_slots(start, 3, size, generator)):
                if slot >= 0:
                    memory[slot] = start + k
        held[memory] += 1
    # binomial: five standard deviations around runs * size / total
    mean = runs * size / total
    assert np.abs(held - mean).max() < 5 * np.sqrt(mean * (1 - size / total))


# ---------------------------------------------------------------------- steps
def test_first_experience__is_plain_training_bit_for_bit():
    plain, _, _ = run(Recorder(), (12,))
    with_plugin, keep, _ = run(ReservoirReplayPlugin(50), (12,))
    assert_same_weights(plain.model, with_plugin.model)
    assert all("from_memory" not in batch for batch in keep.batches)


def test_later_batches__are_half_old_with_as_many_steps():
    plugin = ReservoirReplayPlugin(50)
    strategy, keep, _ = run(plugin)
    assert len(keep.batches) == 15
    assert [len(b["image"]) for b in keep.batches] == [4] * 5 + [8] * 10
    for batch in keep.batches[5:]:
        assert batch["from_memory"].tolist() == [0] * 4 + [1] * 4
        assert batch["owner"].tolist() == list(range(8))
    assert strategy.compute.report()["samples"] == [20, 40, 40]
    assert len(plugin) == plugin.seen == 36
    assert len({tuple(row) for row in plugin.stored.tolist()}) == 36
    first = {int(i) for b in keep.batches[:5] for i in b["sample_id"]}
    assert {int(i) for i in keep.batches[5]["sample_id"][4:]} <= first


def test_buffer__is_bounded_and_shared_over_the_stream():
    plugin = ReservoirReplayPlugin(7)
    _, keep, _ = run(plugin)
    assert len(plugin) == 7 and plugin.seen == 36
    assert [len(b["image"]) for b in keep.batches[5:]] == [8] * 10
    assert len(set(plugin.stored[:, 0].tolist())) > 1


def test_duplicates__are_offered_in_each_pass_as_published():
    once, again = ReservoirReplayPlugin(50), ReservoirReplayPlugin(50, duplicates=True)
    options = {"budget_iterations": None, "train_epochs": 3}
    run(once, (12,), **options)
    run(again, (12,), **options)
    assert (once.seen, again.seen) == (12, 36)
    rows = [tuple(row) for row in again.stored.tolist()]
    assert len(rows) == 36 and len(set(rows)) == 12


@pytest.mark.parametrize("budget", [True, False])
def test_old_items__are_read_again_as_they_were(budget):
    plugin = ReservoirReplayPlugin(50)
    options = {} if budget else {"budget_iterations": None, "train_epochs": 2}
    strategy, keep, _ = run(plugin, noise=0.5, **options)
    originals = {}
    for batch in keep.batches:
        marks = batch.get("from_memory", torch.zeros(len(batch["image"])))
        for row in (marks == 0).nonzero().flatten().tolist():
            key = int(batch["sample_id"][row])
            content = (batch["image"][row], batch["text"][row])
            originals.setdefault(key, content)  # the first time is what is stored
        for row in (marks == 1).nonzero().flatten().tolist():
            image, text = originals[int(batch["sample_id"][row])]
            assert torch.equal(batch["image"][row], image)
            assert torch.equal(batch["text"][row], text)


# --------------------------------------------------------------------- losses
def test_der__keeps_features_of_the_moment_and_pulls_towards_them():
    plugin = ReservoirReplayPlugin(50, target="student", weight=0.5)
    _, keep, _ = run(plugin)
    stored = {}
    for batch, losses, features in zip(
        keep.batches, keep.losses, keep.features, strict=True
    ):
        size = 4
        if "from_memory" in batch:
            old = features[size:]
            expected = torch.stack([stored[int(i)] for i in batch["sample_id"][size:]])
            assert torch.equal(batch["replay_target"][size:], expected)
            value = 0.5 * (old - expected).square().mean()
            assert losses["replay"] == pytest.approx(float(value), rel=1e-5)
        for row in range(size):
            stored.setdefault(int(batch["sample_id"][row]), features[row])


def test_er__without_a_teacher_is_the_larger_batch_only():
    _, keep, _ = run(ReservoirReplayPlugin(50))
    assert all("replay" not in losses for losses in keep.losses)


@pytest.mark.parametrize("target", ["teacher", "student"])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])
def test_cross_lingual_term__counts_new_and_old_apart(target, share):
    torch.manual_seed(0)
    student = torch.randn(6, 3, requires_grad=True)
    teacher, stored = torch.randn(6, 3), torch.randn(6, 3)
    old = torch.tensor([0, 0, 0, 0, 1, 1])
    aux = {"text_raw": student, "teacher_text": teacher}
    terms = {}
    strategy = types.SimpleNamespace(
        mb_x={"from_memory": old, "replay_target": stored},
        global_features=CLIPOutput(student, student, torch.tensor(1.0), aux),
        _criterion=types.SimpleNamespace(cross_lingual_weight=share),
        add_loss=lambda name, value: terms.update({name: value}),
    )
    ReservoirReplayPlugin(target=target, weight=2.0).before_backward(strategy)
    whole = share * (student - teacher).square().mean()
    goal = teacher if target == "teacher" else stored
    expected = share * (student[:4] - teacher[:4]).square().mean()
    expected = expected + 2.0 * (student[4:] - goal[4:]).square().mean()
    torch.testing.assert_close(whole + terms["replay"], expected)
    found = torch.autograd.grad(whole + terms["replay"], student, retain_graph=True)[0]
    torch.testing.assert_close(found, torch.autograd.grad(expected, student)[0])


# -------------------------------------------------------------------- storage
def test_replayed_data__is_what_may_be_drawn():
    plugin = ReservoirReplayPlugin(10)
    strategy, _, benchmark = run(plugin)
    data = plugin.replayed_data(strategy)
    ids = attribute_array(data, "sample_id").tolist()
    found = []
    for experience, position in plugin.stored.tolist():
        column = benchmark.train_stream[experience].dataset
        found.append(int(attribute_array(column, "sample_id")[position]))
    assert sorted(ids) == sorted(set(found)) and len(ids) == 10
    assert ReservoirReplayPlugin().replayed_data(strategy) is None


def test_batches__of_other_data_cannot_be_joined():
    from avalanche_clip.benchmarks import ImageTextBatch

    one = ImageTextBatch(
        image=torch.zeros(2, 0), text=torch.ones(2, 3).long(), owner=torch.arange(2)
    )
    two = ImageTextBatch(one, image=torch.zeros(2, 0), text=torch.ones(2, 5).long())
    joined = join_batches(one, two, pad_id=9)
    assert joined["text"].tolist() == [[1, 1, 1, 9, 9]] * 2 + [[1] * 5] * 2
    assert joined["owner"].tolist() == [0, 1, 2, 3]
    assert joined["image"].shape == (4, 0)
    with pytest.raises(ValueError, match="same facts"):
        join_batches(one, ImageTextBatch(two, targets=torch.zeros(2)), 0)
