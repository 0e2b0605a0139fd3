"""Every method on a batch in two processes, in parts, and in half precision."""

from functools import cache, partial
from itertools import product

import pytest
import torch

from tests.helpers import assert_other_weights, assert_same_weights
from tests.methods.runs import batch_run, rows_that
from tests.methods.variants import VARIANTS
from tests.processes import run_in_processes

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    # The first test waits for all rows.
    pytest.mark.timeout(900),
]

NAMES = [*rows_that("processes"), *VARIANTS]
IN_THREE = [
    "Sequential",
    "ContrastiveLwF",
    "ModX",
    "LwF-VR",
    "DER",
    "Replay on class names",
    "LoRA per language",
]
# Where the loss of a process is that of its own rows, the mean counts.
OWN_ROWS = ("balance",)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of several processes, which do all rows in one go."""

    @cache
    def run(count):
        names = NAMES if count == 2 else IN_THREE
        jobs = {name: partial(batch_run, name, count) for name in names}
        folder = tmp_path_factory.mktemp("pool")
        return run_in_processes(jobs, folder, count=count, seconds=800)

    return run


@pytest.mark.parametrize(
    "name, count",
    [
        *product(NAMES, [2]),
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in IN_THREE),
    ],
)
def test_processes__equal_one_with_the_whole_batch(name, count, pool):
    first, *others = pool(count)[name]
    for other in others:
        assert_same_weights(first["weights"], other["weights"])
        assert first["losses"] == other["losses"]
        assert repr(first["metrics"]) == repr(other["metrics"])
    if name in OWN_ROWS:
        return
    whole = batch_run(name)
    for key in ("ids", "samples"):
        assert first[key] == whole[key], key
    for ours, expected in zip(first["losses"], whole["losses"], strict=True):
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for key, value in whole["weights"].items():
        torch.testing.assert_close(
            first["weights"][key], value, rtol=1e-4, atol=1e-5, msg=key
        )


@pytest.mark.parametrize("name", rows_that("accumulation"))
def test_accumulation__equals_the_big_batch(name):
    ours, expected = batch_run(name, accumulation_steps=2), batch_run(name)
    for key, value in expected["weights"].items():
        torch.testing.assert_close(
            ours["weights"][key], value, rtol=1e-4, atol=1e-5, msg=key
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", rows_that("compiled"))
def test_compiled__model_trains_to_the_same_numbers(name):
    torch.compiler.reset()
    ours, plain = batch_run(name, compiled=True), batch_run(name)
    for key, value in plain["weights"].items():
        torch.testing.assert_close(
            ours["weights"][key], value, rtol=1e-4, atol=1e-5, msg=key
        )
    assert ours["metrics"] == pytest.approx(plain["metrics"], rel=1e-4, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", rows_that("checkpointed"))
def test_checkpointed__activations_change_nothing(name):
    ours, plain = (batch_run(name, checkpointed=on) for on in (True, False))
    assert ours["losses"] == plain["losses"]
    assert_same_weights(ours["weights"], plain["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("name", rows_that("fp16"))
def test_fp16__stays_finite_and_close(name, monkeypatch):
    # from 2 ** 16 on, which is halved until it fits, a short run would not move
    scaler = partial(torch.amp.GradScaler, init_scale=64.0)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    ours, exact = batch_run(name, precision="fp16"), batch_run(name)
    for key, value in exact["weights"].items():
        torch.testing.assert_close(
            ours["weights"][key], value, rtol=0.1, atol=0.05, msg=key
        )
    assert_other_weights(ours["weights"], exact["weights"])


@pytest.mark.parametrize("name", rows_that("bf16"))
def test_bf16__stays_finite_and_close(name):
    ours, exact = batch_run(name, precision="bf16"), batch_run(name)
    for key, value in exact["weights"].items():
        torch.testing.assert_close(
            ours["weights"][key], value, rtol=0.1, atol=0.05, msg=key
        )
    assert_other_weights(ours["weights"], exact["weights"])
