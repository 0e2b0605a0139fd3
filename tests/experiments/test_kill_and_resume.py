"""The experiment that kills runs: what it goes over, and where it kills."""

import random

import pytest

from avalanche_clip.training import supervised

STUDY = "kill_and_resume"


def test_methods__are_all_named_strategies_and_one_more(study):
    named = {n for n in supervised.__all__ if isinstance(getattr(supervised, n), type)}
    assert set(study.methods()) == named | {study.CONSTANT_COSINE}
    assert set(study.OPTIONS) <= set(study.methods())


def test_place__is_first_before_the_first_inner_checkpoint(study):
    generator, counts = random.Random(0), {"train": 12, "eval": 30}
    kills = [study.place(generator, n % 6, counts) for n in range(600)]
    assert {k for k in kills[::6]} == {(0, None), (1, None)}
    assert {k[1] is None for k in kills[2::3]} == {False}
    assert {k[0] for k in kills[1::6]} == set(range(12))


@pytest.mark.parametrize("method", ["CLLCLIP", "MoEAdapters", "Patching"])
def test_build__has_three_groups_and_three_steps(study, method):
    strategy, benchmark = study.build(method, [study.KillPlugin(None, None)])
    groups = strategy.optimizer.param_groups
    assert [g["lr"] for g in groups[:3]] == [1e-3, 1e-4, 3e-3]
    assert len(benchmark.train_stream) == 3
