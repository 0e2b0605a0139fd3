"""Replay and adapters of languages: two gloo processes against one."""

from functools import partial

import pytest
import torch

from avalanche_clip.training.plugins import LanguageAdapterPlugin, ReservoirReplayPlugin
from tests.helpers import train_stream, weights
from tests.processes import run_in_processes
from tests.training.languages import language_strategy, language_stream, tiny_model

CASES = {
    "DER, two old per process": lambda part: [
        ReservoirReplayPlugin(7, target="student", duplicates=True)
    ],
    "LoRA": lambda part: [LanguageAdapterPlugin("lora", rank=2)],
    "ER and MLA": lambda part: [ReservoirReplayPlugin(9), LanguageAdapterPlugin("mla")],
}


class Note:
    """Keep the losses of each step."""

    stateless = True

    def __init__(self):
        self.losses = []

    def after_update(self, strategy, **kwargs):
        terms = {k: float(v) for k, v in strategy.loss_terms.items()}
        self.losses.append({**terms, "all": float(strategy.loss)})


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.5)


def small_run(case, processes):
    model, note = tiny_model(), Note()
    plugins = CASES[case](processes)
    strategy = language_strategy(
        model,
        plugins=[*plugins, note],
        optimizer=sgd,
        warmup_fraction=0.0,
        train_mb_size=8 // processes,
        budget_iterations=3,
    )
    train_stream(strategy, language_stream(model))
    stored = plugins[0].state_dict() if hasattr(plugins[0], "stored") else {}
    return {"weights": weights(model), "losses": note.losses, "stored": stored}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of both processes, which do all cases in one go."""
    jobs = {case: partial(small_run, case, 2) for case in CASES}
    return run_in_processes(jobs, tmp_path_factory.mktemp("pool"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_two_processes__equal_one_with_the_whole_batch(case, pool):
    first, second = pool[case]
    whole = small_run(case, 1)
    assert set(whole["weights"]) == set(first["weights"])
    for name, value in whole["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(
            first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name
        )
    for ours, theirs in zip(first["losses"], whole["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, value in whole["stored"].items():
        for part in (first, second):
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(part["stored"][name], value)
            else:
                assert part["stored"][name] == value
    if "ER" in case:
        assert any("replay" in terms for terms in whole["losses"])
