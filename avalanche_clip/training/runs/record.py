"""What a run was: configuration, versions, revision and data."""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from avalanche_clip import __version__
from avalanche_clip.benchmarks.items.content import content_hash

_PACKAGES = (
    "avalanche-lib",
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "timm",
    "numpy",
)
# Avalanche's own, and plugins that change nothing.
_AVALANCHE = ("Clock", "PeriodicEval", "EvaluationPlugin")
_WATCHERS = (*_AVALANCHE, "CheckpointPlugin", "ProgressPlugin")
_LONG = 100
_FIELDS = (
    "train_mb_size",
    "train_epochs",
    "eval_mb_size",
    "schedule",
    "warmup_iterations",
    "later_warmup_iterations",
    "precision",
    "accumulation_steps",
    "clip_grad_norm",
    "reset_optimizer_state",
    "positives",
    "label_space",
    "eval_label_space",
    "label_smoothing",
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


def strategy_config(strategy: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Settings of a strategy as plain data."""
    budget = strategy.compute
    groups = [
        {k: n for k, v in g.items() if k != "params" and _plain(n := _number(v))}
        for g in strategy.optimizer.param_groups
    ]
    config = {
        "strategy": type(strategy).__name__,
        **{name: getattr(strategy, name, None) for name in _FIELDS},
        "budget": {
            "iterations": budget.iterations,
            "samples": budget.samples,
            "macs": budget.macs,
        },
        "optimizer": {"class": type(strategy.optimizer).__name__, "groups": groups},
        "plugins": [
            {
                "class": type(p).__name__,
                **{k: v for k, v in vars(p).items() if k[0] != "_" and _plain(v)},
            }
            for p in strategy.plugins
            if type(p).__name__ not in _AVALANCHE
        ],
        "model": getattr(strategy.model, "config", type(strategy.model).__name__),
        "pretrained": getattr(strategy.model, "pretrained", None),
        "loader": {k: v for k, v in options.items() if _plain(v)},
        "device": str(strategy.device),
    }
    # Plugins go on to change their lists.
    return copy.deepcopy(config)


def plugin_settings(strategy: Any) -> dict[str, dict[str, Any]]:
    """What a resumed run must have in common with the stored one, per plugin.

    Of this package's and Avalanche's plugins these are the arguments of their
    constructors, as far as they are plain attributes, or have an ``identity`` of
    plain data; of others the class.

    :param strategy: its plugins in order; those that only watch are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for plugin in strategy.plugins:
        cls = type(plugin)
        if cls.__name__ in _WATCHERS:
            continue
        known = cls.__module__.startswith(("avalanche_clip.", "avalanche.training."))
        settings = kept_arguments(plugin) if known else {}
        found[f"{len(found)} {cls.__name__}"] = settings
    return copy.deepcopy(found)


def kept_arguments(thing: Any) -> dict[str, Any]:
    """Arguments of the constructors of an object that it has kept as plain data."""
    names = {
        name
        for cls in type(thing).__mro__
        if "__init__" in vars(cls)
        for name in inspect.signature(vars(cls)["__init__"]).parameters
    }
    have = {k: getattr(v, "identity", v) for k, v in vars(thing).items() if k in names}
    plain = {k: _number(v) for k, v in sorted(have.items())}
    return {k: _brief(v) for k, v in plain.items() if _plain(v)}


def _brief(value: Any) -> Any:
    """A long list, such as one of captions, as its length and a hash."""
    if not isinstance(value, (list, tuple)) or len(value) <= _LONG:
        return value
    digest = hashlib.sha256(repr(list(value)).encode("utf-8", "backslashreplace"))
    return f"{len(value)} values, {digest.hexdigest()[:16]}"


def strategy_arguments(strategy: Any) -> dict[str, Any]:
    """What a strategy was built with beyond :func:`strategy_config`."""
    # Class names have a loss function, and the criterion that uses it is a method.
    loss = getattr(strategy, "loss_function", getattr(strategy, "_criterion", None))
    kind = loss if inspect.isfunction(loss) else type(loss)
    criterion = {"class": kind.__qualname__}
    if hasattr(loss, "__dict__") and not inspect.isfunction(loss):
        criterion |= kept_arguments(loss)
    return {**kept_arguments(strategy), "criterion": criterion}


def _number(value: Any) -> Any:
    """A tensor or NumPy value that holds one number, as that number."""
    one = hasattr(value, "item") and (getattr(value, "shape", None) in ((), (1,)))
    return value.item() if one else value


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    return isinstance(value, (bool, int, float, str, type(None)))


def data_summary(benchmark: Any) -> dict[str, Any]:
    """Hash, counts, labels and transforms of the data of a benchmark.

    The hash covers :func:`content_hash` of every experience of every stream, which
    ``experiences`` holds one by one, and class names and templates where there
    are any.
    """
    digest = hashlib.sha256()
    hashes: dict[str, dict[str, str]] = {}
    counts: dict[str, list[int]] = {}
    labels: dict[str, list[str]] = {}
    prompts = getattr(benchmark, "class_prompts", None)
    if prompts is not None and hasattr(prompts, "fingerprint"):
        digest.update(f"prompts|{prompts.fingerprint()}|".encode())
    for name, stream in benchmark.streams.items():
        hashes[name] = experience_hashes(stream)
        digest.update(f"{name}|{'|'.join(hashes[name].values())}|".encode())
        for index, experience in enumerate(stream):
            counts.setdefault(name, []).append(len(experience.dataset))
            label = getattr(experience, "label", str(index))
            label = getattr(experience, "time_label", label)
            labels.setdefault(name, []).append(str(label))
    return {
        "hash": digest.hexdigest(),
        "experiences": hashes,
        "counts": counts,
        "labels": labels,
        "protocol": getattr(benchmark, "protocol", None),
        "transforms": getattr(benchmark, "transforms", None),
    }


def experience_hashes(stream: Any) -> dict[str, str]:
    """Hashes of the data of a stream, by the place of the experience in it."""
    return {str(i): content_hash(e.dataset) for i, e in enumerate(stream)}


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
    for plugin in strategy.plugins:
        units *= getattr(plugin, "nominal_cost", 1.0)
    return units


def strict(value: Any) -> Any:
    """Replace NaN and infinity by null, which strict JSON readers accept.

    >>> strict({"E": [0.5, float("nan")]})
    {'E': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: strict(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
