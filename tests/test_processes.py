"""The pool of processes tells what went wrong in them."""

import time
from functools import partial

import pytest
import torch.distributed as dist

from tests.processes import run_in_processes


def fails():
    raise RuntimeError(f"broken on {dist.get_rank()}")


def test_jobs__results_by_rank_until_one_fails(tmp_path):
    jobs = {"rank": dist.get_rank, "fails": fails, "later": dist.get_rank}
    results = run_in_processes(jobs, tmp_path, count=3)
    assert results["rank"] == [0, 1, 2]
    for name in ("fails", "later"):
        with pytest.raises(AssertionError, match="(?s)broken on 0.*broken on 2"):
            results[name]


def test_jobs__that_do_not_end_are_killed(tmp_path):
    jobs = {"sleep": partial(time.sleep, 900)}
    results = run_in_processes(jobs, tmp_path, seconds=2)
    with pytest.raises(AssertionError, match="rank 1: no results .* exit code -9"):
        results["sleep"]
