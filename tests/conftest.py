"""Thread counts, markers, and what a plain ``pytest`` leaves out."""

import os

# Before torch is imported, since it reads these once. Each worker has one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest

MARKERS = {
    "slow": "takes more than a few seconds; run with -m slow",
    "network": "downloads something; run with -m network",
    "gpu": "needs a CUDA device; skipped where there is none",
}
LEFT_OUT = ("slow", "network")


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
    # An expression on the command line (-m) says itself what to run.
    if config.option.markexpr:
        return
    left_out = [item for item in items if any(map(item.get_closest_marker, LEFT_OUT))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        dropped = set(map(id, left_out))
        items[:] = [item for item in items if id(item) not in dropped]


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
