"""What a run was: configuration, versions, revision and data."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from avalanche_clip import __version__
from avalanche_clip.common.plain import is_plain
from avalanche_clip.training.templates.settings import strategy_settings

_PACKAGES = (
    "avalanche-lib",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "timm",
    "numpy",
)

_NAME = re.compile(
    r"^(?P<metric>.+)/eval_phase/(?P<stream>.+)_stream/(?:Task\d+/)?Exp(?P<exp>\d+)$"
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version(), "avalanche_clip": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def revision() -> dict[str, Any]:
    """Git commit of the package's checkout, and whether it has changes.

    An installed package has none, even below another project's checkout.
    """
    folder = Path(__file__).resolve().parents[2]
    top = _git(folder, "rev-parse", "--show-toplevel")
    own = top is not None and Path(top).resolve() == folder.parent
    commit = _git(folder, "rev-parse", "HEAD") if own else None
    if commit is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def metric_results(strategy: Any) -> dict[str, Any]:
    """Results of the metrics that ask to be written with the run, by name.

    :param strategy: its evaluator's metrics with a true ``in_results`` count.
    """
    return {
        str(metric): metric.result()
        for metric in strategy.evaluator.metrics
        if getattr(metric, "in_results", False)
    }


def reset_metrics(strategy: Any) -> None:
    """Let those metrics forget an earlier run of the same strategy."""
    for metric in strategy.evaluator.metrics:
        if getattr(metric, "in_results", False):
            metric.reset()


def nominal_units(strategy: Any) -> float | None:
    """Cost of a run in plain budgets, as TiC-CLIP accounts for it.

    Training passes over the budget of one plain step, times the factor that a
    method is accounted at (``nominal_cost``, 1.2 for LwF), whatever its real
    passes were: over seven steps 7 for plain methods, 8.4 for LwF, 28 for
    Oracle.

    :param strategy: a strategy that has been trained.
    :return: None without a budget.
    """
    compute = strategy.compute
    report = compute.report()
    if compute.iterations is not None:
        units = sum(report["steps"]) / compute.iterations
    elif compute.samples is not None:
        units = sum(report["samples"]) / compute.samples
    elif compute.macs is not None:
        pair = sum(strategy.model.macs().values())
        units = sum(report["samples"]) * pair / compute.macs
    else:
        return None
    for contract in strategy.contracts:
        units *= contract.nominal_cost
    return units


def run_config(strategy: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Settings as ``results.json`` holds them.

    :param options: further arguments of ``train``.
    """
    settings = strategy_settings(strategy)
    plugins = settings["plugins"].items()
    named = [{"class": k.partition(" ")[2], **values} for k, values in plugins]
    loader = {k: v for k, v in options.items() if is_plain(v)}
    device = str(strategy.device)
    return {**settings, "plugins": named, "loader": loader, "device": device}


def model_macs(strategy: Any) -> dict[str, int] | None:
    """MACs of one pass of each tower, None for models that do not tell."""
    macs = getattr(strategy.model, "macs", None)
    return macs() if callable(macs) else None


def read_row(values: dict[str, Any], stream: str, size: int) -> dict[str, list[float]]:
    """Collect the per-experience values of one stream from metric names."""
    table: dict[str, list[float]] = {}
    for name, value in values.items():
        match = _NAME.match(name)
        if match and match["stream"] == stream and isinstance(value, (int, float)):
            row = table.setdefault(match["metric"], [float("nan")] * size)
            if int(match["exp"]) < size:
                row[int(match["exp"])] = float(value)
    return table
