"""Thread counts, markers, what a plain ``pytest`` leaves out, what makes it fast."""

import gc
import os
import sys

# Before torch is imported, since it reads these once. Each worker has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest

from tests import forks

# Importing makes millions of objects that stay: looking through them again and again
# for garbage takes a fifth of the time.
gc.disable()
# No test needs its files after a power cut. Those of the order of calls put their own
# function here.
os.fsync = lambda descriptor: None

MARKERS = {
    "slow": "takes more than a few seconds; run with -m slow",
    "network": "downloads something; run with -m network",
    "gpu": "needs a CUDA device; skipped where there is none",
}
LEFT_OUT = ("slow", "network")
LONG = ("test_batches.py", "test_docs.py", "test_next_step.py", "test_extension.py")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if "network" not in config.option.markexpr:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _has_cuda():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    _rows_together(items)
    # What takes longest goes first, so that no worker has it left at the end.
    items.sort(key=lambda item: item.path.name not in LONG)
    # An expression on the command line (-m) says itself what to run.
    if config.option.markexpr:
        return
    left_out = [item for item in items if any(map(item.get_closest_marker, LEFT_OUT))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        dropped = set(map(id, left_out))
        items[:] = [item for item in items if id(item) not in dropped]


def pytest_runtest_teardown() -> None:
    """Studies flush the smallest numbers to zero: no test after them shall."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


def _rows_together(items: list[pytest.Item]) -> None:
    """Put tests of one row of the table of methods one after the other.

    They share runs, which each worker of pytest-xdist would make for itself.
    """
    chosen = [k for k, item in enumerate(items) if item.path.parent.name == "methods"]
    rows = {}
    for number in chosen:
        calls = getattr(items[number], "callspec", None)
        row = calls.params.get("name") if calls else None
        rows.setdefault((items[number].path.name, row), []).append(items[number])
    for number, item in zip(chosen, sum(rows.values(), []), strict=True):
        items[number] = item


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    gc.enable()
    if not session.config.option.collectonly:
        forks.start()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # what libraries of C++ miss at the end they complain of


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
