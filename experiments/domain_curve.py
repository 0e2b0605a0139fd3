"""Patching against early stopping, on the same trainings (``--curve``).

The model before the stream is fine-tuned on one domain. Its weights on the way are
early stopping, those between start and end are patching: each gives a pair of what is
learned (accuracy on the domain) and what is kept (accuracy on all other domains, and
on held-out icons). Pairs are means over :data:`DOMAINS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import multi_domain_emoji as study
import numpy as np
import torch
from domain_study import accuracies
from figures import kept_at, write_figures
from search import base_facts, same_facts

from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.common.grown import clones
from avalanche_clip.training import MethodPlugin

DOMAINS = ("Animals & Nature", "Travel & Places", "Objects", "Symbols")
COEFFICIENTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STOPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
"""Shares of the updates after which training is stopped early."""
KEPT = ("others", "icons")
Point = dict[str, float]

NOTE = """\
accuracy in percent, mean ± standard deviation over seeds; learned: on the domain that
was trained, others: on the domains that were not, icons: held-out names. stop: early
stopping after a share of the updates, patch: a share of the way from start to end.
others+, icons+: what patching keeps more than early stopping does where it learns as
much, on the line through its points; mean over the shares: row patching."""


class SnapshotsPlugin(MethodPlugin):
    """Keeps the weights after some numbers of updates.

    :param stops: the numbers.
    """

    stateless = True  # used on single trainings, which are not resumed

    def __init__(self, stops: Sequence[int]):
        super().__init__()
        self.stops = set(stops)
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def iteration_completed(self, strategy: Any) -> None:
        """Copy the weights if it is time."""
        if strategy.clock.train_exp_iterations in self.stops:
            done = strategy.clock.train_exp_iterations
            self.weights[done] = clones(strategy.model)


def cell(config: Any, rate: float, domain: str, path: Path) -> dict[str, Point]:
    """Points of one training; kept in a file for the next time."""
    settings = {**asdict(config), "device": None, "rate": rate, "domain": domain}
    settings |= {"stops": list(STOPS), "coefficients": list(COEFFICIENTS)}
    settings |= base_facts(config.model, config.pretrained)
    if path.is_file():
        kept = read_json(path, checksum=True, rewrite="delete it and run it again")
        if same_facts(kept["settings"], settings):
            return kept["points"]
    torch.manual_seed(config.seed)
    model = study.build_model(config)
    benchmark = study.build_benchmark(config, model)
    strategy = study.build_strategy(config, f"fine-tuning:{rate}", model, benchmark)
    stops = {f"stop {s:g}": max(1, round(s * config.iterations)) for s in STOPS}
    snapshots = SnapshotsPlugin(list(stops.values()))
    strategy.plugins.append(snapshots)
    place = [e.label for e in benchmark.train_stream].index(domain)
    start = clones(model)
    strategy.train(benchmark.train_stream[place])
    states = weights_between(start, clones(model))
    states |= {name: snapshots.weights[done] for name, done in stops.items()}
    points = {}
    for name, weights in states.items():
        model.load_state_dict(weights)
        (icons,) = accuracies(strategy, benchmark.streams["icons"], "icons")
        found = accuracies(strategy, benchmark.streams["test"], "test")
        values = {"learned": found.pop(place), "others": np.mean(found), "icons": icons}
        points[name] = {key: 100 * float(value) for key, value in values.items()}
    write_json(path, {"settings": settings, "points": points}, checksum=True)
    return points


def weights_between(
    start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of patching by name, with those of start and end."""
    from avalanche_clip.training.methods.patching import mix

    shares = {"start": 0.0, **{f"patch {c:g}": c for c in COEFFICIENTS}, "end": 1.0}
    return {name: mix(dict(start), dict(end), c) for name, c in shares.items()}


def with_gains(points: Mapping[str, Point]) -> dict[str, Point]:
    """Add what patching keeps more than early stopping, and a row of means."""
    stopped = [p for name, p in points.items() if not name.startswith("patch")]
    found: dict[str, Point] = {name: dict(point) for name, point in points.items()}
    for name, point in found.items():
        for key in KEPT:
            curve = [(p["learned"], p[key]) for p in stopped]
            gain = point[key] - kept_at(curve, point["learned"])
            point[f"{key}+"] = gain if name.startswith("patch") else float("nan")
    patched = [point for name, point in found.items() if name.startswith("patch")]
    found["patching"] = {key: _mean([p[key] for p in patched]) for key in patched[0]}
    return found


def _mean(values: Sequence[float]) -> float:
    """Mean of those values that are known, NaN if there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def write_curve(config: Any, seeds: Sequence[int], rate: float, out: Path) -> str:
    """Train, test and compare; write table, figures and a plot; return the text."""
    lines: dict[str, list[Point]] = {}
    for seed in seeds:
        cells = []
        for number, domain in enumerate(DOMAINS):
            path = out / f"seed_{seed}" / f"{number}.json"
            cells.append(cell(replace(config, seed=seed), rate, domain, path))
            print(f"{domain}, seed {seed}: {path}")
        means = {
            name: {key: float(np.mean([c[name][key] for c in cells])) for key in point}
            for name, point in cells[0].items()
        }
        for name, point in with_gains(means).items():
            lines.setdefault(name, []).append(point)
    facts = {**asdict(config), "seed": None, "device": None, "seeds": list(seeds)}
    facts |= {"study": f"{study.STUDY} --curve", "rate": rate, "domains": list(DOMAINS)}
    plot(lines, out / "curve.png")
    return write_figures(lines, out, facts, NOTE)


def plot(lines: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draw what is kept against what is learned, a line for each way."""
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.report.plots import save_figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    ways = {
        "early stopping": ("start", "stop", "end"),
        "patching": ("start", "patch ", "end"),
    }
    for axes, key in zip(figure.subplots(1, 2), KEPT, strict=True):
        for way, parts in ways.items():
            rows = [r for name, r in lines.items() if name.startswith(parts)]
            pairs = [[_mean([p[k] for p in r]) for k in ("learned", key)] for r in rows]
            axes.plot(*zip(*sorted(pairs), strict=True), "o-", label=way, markersize=4)
        axes.set_xlabel("learned: the domain that was trained, percent")
        axes.set_title(f"kept: {key}", loc="left")
    axes.legend(frameon=False)
    save_figure(figure, path)
