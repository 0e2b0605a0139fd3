"""Runs resumed from their very first checkpoints, whatever the groups are."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin

from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import CheckpointPlugin
from avalanche_clip.training.runs.resume import load_state, save_state
from tests.helpers import (
    assert_same_weights,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)
from tests.methods.worlds import adamw, three_groups
from tests.training.growing import GrowingEncoder


# ------------------------------------------------------------------ forms of groups
class OwnGroup(SupervisedPlugin):
    """Claims one parameter for a group of its own."""

    stateless = True

    def __init__(self, lr=0.05):
        super().__init__()
        self.lr = lr

    def param_groups(self, strategy):
        return [{"names": ["text_proj.weight"], "lr": self.lr, "weight_decay": 0.1}]


def instance(model, swapped=False):
    """An optimiser of the user's with three groups."""
    named = dict(model.named_parameters())
    groups = three_groups(list(named.items()))
    if swapped:
        groups[0]["names"], groups[1]["names"] = groups[1]["names"], groups[0]["names"]
    return torch.optim.AdamW(
        [
            {"params": [named[n] for n in g.pop("names")], **g}
            for g in [dict(group) for group in groups]
        ],
        lr=0.5,
    )


def build(form, *plugins, cls=Sequential, **options):
    """A strategy whose three groups were given in one of several ways."""
    model = GrowingEncoder(dropout=0.1) if form == "growing" else stub_model()
    given = {"optimizer": adamw, "param_groups": three_groups}
    own = []
    if form in ("instance", "scheduler", "swapped"):
        given = {"optimizer": instance(model, form == "swapped")}
    if form == "callable":  # OpenCLIP's two groups, told apart by their decay
        given = {"optimizer": adamw}
    if form == "scheduler":
        halving = torch.optim.lr_scheduler.StepLR(given["optimizer"], 1, gamma=0.5)
        own = [LRSchedulerPlugin(halving, step_granularity="iteration")]
    if form == "plugin":
        own = [OwnGroup()]
    defaults = {
        "train_mb_size": 4,
        "budget_iterations": 3,
        "schedule": "constant",
        "evaluator": quiet_evaluator(),
        "reset_optimizer_state": False,
    }
    strategy = cls(
        model=model, plugins=[*own, *plugins], **{**defaults, **given, **options}
    )
    return strategy, stub_benchmark(model=model)


FORMS = ("instance", "callable", "rule", "scheduler", "plugin", "growing")


@pytest.mark.parametrize("form", FORMS)
def test_groups__keep_their_options_from_any_checkpoint(form, tmp_path):
    whole, benchmark = build(form)
    train_stream(whole, benchmark)
    writer = CheckpointPlugin(tmp_path, every_iterations=1, keep=99)
    part, benchmark = build(form, writer)
    first = save_state(part, tmp_path / "state_000000000.pt")
    train_stream(part, benchmark, 2)
    names = ("000001", "000003_end", "000004", "000006_end")
    for path in (first, *(tmp_path / f"state_000{n}.pt" for n in names)):
        again, benchmark = build(form)
        start = load_state(again, path, benchmark)
        for experience in list(benchmark.train_stream)[start:]:
            again.train(experience, eval_streams=[])
        assert_same_weights(whole.model, again.model)
        ours, theirs = (
            [
                {k: v for k, v in g.items() if k != "params"}
                for g in s.optimizer.param_groups
            ]
            for s in (whole, again)
        )
        assert ours == theirs


def test_load__other_options_are_refused_by_name(tmp_path):
    path = save_state(build("rule")[0], tmp_path / "state.pt")

    def rule(lr=1e-3, decay=0.0, count=3):
        def groups(named):
            rows = three_groups(named)
            rows[1].update(lr=lr, weight_decay=decay)
            if count == 2:
                rows[0]["names"] += rows.pop()["names"]
            return rows

        return groups

    for wrong, message in (
        (rule(lr=1e-4), r"groups\.1\.lr is 0\.001 there and 0\.0001 here"),
        (rule(decay=0.3), r"groups\.1\.weight_decay is 0\.0 .* 0\.3 here"),
        (rule(count=2), "groups has 3 parts there and 2 here"),
    ):
        other, benchmark = build("rule", param_groups=wrong)
        with pytest.raises(CheckpointError, match=message):
            load_state(other, path, benchmark)


def test_load__parameters_in_other_groups_are_refused_by_name(tmp_path):
    path = save_state(build("instance")[0], tmp_path / "state.pt")
    wrong, benchmark = build("swapped")
    with pytest.raises(CheckpointError, match=r"of\.image_proj.weight is 1 there"):
        load_state(wrong, path, benchmark)


def test_load__group_of_another_plugin_is_refused_inside_an_experience(tmp_path):
    strategy, benchmark = build("plugin")
    train_stream(strategy, benchmark, 1)
    path = save_state(strategy, tmp_path / "state.pt")
    other, benchmark = build("rule")
    assert load_state(other, path, benchmark) == 1  # the group stays, empty
    writer = CheckpointPlugin(tmp_path, every_iterations=1, keep=9)
    strategy, benchmark = build("rule", writer)
    train_stream(strategy, benchmark, 1)
    other, benchmark = build("plugin")
    load_state(other, tmp_path / "state_000000002.pt", benchmark)
    with pytest.raises(CheckpointError, match="this one 4 .*OwnGroup 0 0"):
        train_stream(other, benchmark)
