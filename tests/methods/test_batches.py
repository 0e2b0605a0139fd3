"""Every method on a batch in two processes, in parts, and in half precision."""

from functools import partial

import pytest
import torch

from tests.helpers import assert_other_weights, assert_same_weights
from tests.methods.runs import batch_run, rows_that
from tests.methods.variants import VARIANTS
from tests.processes import run_in_processes

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = [*rows_that("processes"), *VARIANTS]
# Where the loss of a process is that of its own rows, the mean counts.
OWN_ROWS = ("balance",)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of both processes, which do all rows in one go."""
    jobs = {name: partial(batch_run, name, 2) for name in NAMES}
    return run_in_processes(jobs, tmp_path_factory.mktemp("pool"), seconds=280)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes__equal_one_with_the_whole_batch(name, pool):
    first, second = pool[name]
    assert_same_weights(first["weights"], second["weights"])
    assert first["losses"] == second["losses"]
    assert repr(first["metrics"]) == repr(second["metrics"])
    if name in OWN_ROWS:
        return
    whole = batch_run(name)
    assert first["samples"] == whole["samples"]
    for ours, expected in zip(first["losses"], whole["losses"], strict=True):
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for key, value in whole["weights"].items():
        torch.testing.assert_close(
            first["weights"][key], value, rtol=1e-4, atol=1e-5, msg=key
        )


@pytest.mark.parametrize("name", rows_that("accumulation"))
def test_accumulation__equals_the_big_batch(name):
    ours, expected = (batch_run(name, accumulation_steps=k) for k in (2, 1))
    for key, value in expected["weights"].items():
        torch.testing.assert_close(
            ours["weights"][key], value, rtol=1e-4, atol=1e-5, msg=key
        )


@pytest.mark.parametrize("name", rows_that("bf16"))
def test_bf16__stays_finite_and_close(name):
    ours, exact = batch_run(name, precision="bf16"), batch_run(name)
    for key, value in exact["weights"].items():
        torch.testing.assert_close(
            ours["weights"][key], value, rtol=0.1, atol=0.05, msg=key
        )
    assert_other_weights(ours["weights"], exact["weights"])
