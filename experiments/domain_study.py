"""Tables and plots that the studies over several domains share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search import same_facts

from avalanche_clip.common.files import read_json, write_json, write_text

ACCURACY = "Top1_Acc_Exp"
SUMMARY = ("transfer", "average", "last", "seen", "unseen", "harmonic")


def accuracies(
    strategy: Any, stream: Any, name: str, metric: str = ACCURACY
) -> list[float]:
    """Accuracy, or another metric, of a strategy's model on each experience."""
    values = strategy.eval(stream)
    found = [0.0] * len(stream)
    for key, value in values.items():
        head, _, tail = key.partition("/eval_phase/")
        if head == metric and tail.startswith(f"{name}_stream/"):
            found[int(tail.rpartition("Exp")[2])] = float(value)
    return found


def once(
    strategy: Any,
    benchmark: Any,
    streams: Sequence[str],
    folder: str | Path,
    settings: Mapping[str, Any],
) -> dict[str, list[float]]:
    """Accuracies of the model as it is; kept in ``folder`` for the next time.

    :param settings: of the run; what was kept under others is not taken.
    """
    path = Path(folder) / "once.json"
    wanted = json.loads(json.dumps({"streams": list(streams), **settings}, default=str))
    if path.is_file():
        kept = read_json(path, checksum=True, rewrite="delete it and run it again")
        if same_facts(kept.get("settings", {}), wanted):
            return kept["accuracies"]
    found = {
        name: accuracies(strategy, benchmark.streams[name], name) for name in streams
    }
    write_json(path, {"settings": wanted, "accuracies": found}, checksum=True)
    return found


def write_routing(routing: Mapping[str, Any], folder: str | Path) -> None:
    """Write how images were routed, beside streams that were only tested earlier."""
    path = Path(folder) / "routing.json"
    earlier = {}
    if path.is_file():
        earlier = read_json(path, dict)
    write_json(path, {**earlier, **routing})


def parameter_counts(strategy: Any) -> dict[str, int]:
    """Numbers that train in the first experience, and in the whole model."""
    parameters = list(strategy.model.parameters())
    return {
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "model": sum(p.numel() for p in parameters),
    }


def domain_values(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Transfer, average and last of each domain, in the unit of the matrix."""
    from avalanche_clip.evaluation.functional import transfer_per_task

    return transfer_per_task(matrix)


def summary_line(matrix: np.ndarray) -> dict[str, float]:
    """The figures of one run in percent, from ``A[i, j]`` in ``[0, 1]``."""
    from avalanche_clip.evaluation.functional import (
        seen_unseen_harmonic,
        transfer_average_last,
    )

    values = {**transfer_average_last(matrix), **seen_unseen_harmonic(matrix)}
    return {key: 100 * values[key] for key in SUMMARY}


def constant_matrix(row: Sequence[float]) -> np.ndarray:
    """``A`` of a model that is never trained."""
    return np.tile(np.asarray(row, dtype=float), (len(row), 1))


def spread_table(lines: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Mean and spread (sample standard deviation) over seeds, one row per method."""
    columns = list(next(iter(lines.values()))[0])
    width = max(len(name) for name in (*lines, "method")) + 1
    head = f"{'method':<{width}}" + "".join(f"{c:>16}" for c in columns)
    rows = [head, "-" * len(head)]
    for method, found in lines.items():
        cells = []
        for column in columns:
            values = np.array([line[column] for line in found], dtype=float)
            digits = 0 if column == "trainable" else 1
            spread = f" ±{values.std(ddof=1):.1f}" if len(values) > 1 else ""
            if column == "trainable":
                spread = ""
            known = not np.isnan(values).any()
            cell = f"{values.mean():.{digits}f}{spread}" if known else "-"
            cells.append(cell.rjust(16))
        rows.append(f"{method:<{width}}" + "".join(cells))
    return "\n".join(rows)


def domain_table(
    matrices: Mapping[str, Sequence[np.ndarray]], labels: Sequence[str]
) -> str:
    """Transfer, average and last per domain in percent, mean over seeds."""
    width = max(len(name) for name in matrices) + 10
    cell = max(7, *(min(len(label), 12) + 1 for label in labels))
    head = " " * width + "".join(f"{label[:12]:>{cell}}" for label in labels)
    rows = [head]
    for method, found in matrices.items():
        for kind in ("transfer", "average", "last"):
            values = np.mean([domain_values(A)[kind] for A in found], axis=0)
            cells = [
                "".rjust(cell) if np.isnan(v) else f"{100 * v:.1f}".rjust(cell)
                for v in values
            ]
            rows.append(f"{method + ' ' + kind:<{width}}" + "".join(cells))
    return "\n".join(rows)


def routing_table(
    routing: Mapping[str, Mapping[str, int]], labels: Sequence[str]
) -> str:
    """How test images are routed after the last experience, shares in percent.

    :param routing: ``MoEAdaptersPlugin.routing`` of one stream.
    :param labels: of the domains.
    """
    steps = {tuple(int(n) for n in key.split(",")): v for key, v in routing.items()}
    last = max(trained for trained, _ in steps)
    rows = [f"{'tested on':<18}{'own':>7}{'other':>7}{'zero-shot':>11}"]
    for (trained, number), counts in sorted(steps.items()):
        if trained == last:
            total = max(sum(counts.values()), 1)
            own = counts.get(str(number), 0)
            none = counts.get("-1", 0)
            shares = [100 * n / total for n in (own, total - own - none, none)]
            cells = f"{shares[0]:>7.1f}{shares[1]:>7.1f}{shares[2]:>11.1f}"
            rows.append(f"{labels[number][:17]:<18}{cells}")
    return "\n".join(rows)


def plot_summary(
    lines: Mapping[str, Sequence[Mapping[str, float]]], path: Path
) -> None:
    """Draw transfer, average and last of all methods as bars with spread."""
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.report.plots import save_figure

    kinds = ("transfer", "average", "last")
    figure = Figure(figsize=(1.5 + 1.6 * len(lines), 4), layout="constrained")
    axes = figure.subplots()
    for offset, kind in enumerate(kinds):
        values = [[line[kind] for line in found] for found in lines.values()]
        means = [np.mean(v) for v in values]
        errors = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
        places = np.arange(len(lines)) + 0.27 * (offset - 1)
        axes.bar(places, means, 0.25, yerr=errors, label=kind, capsize=2)
    axes.set_xticks(range(len(lines)), list(lines), rotation=20, ha="right")
    axes.set_ylabel("accuracy in percent")
    axes.legend(frameon=False)
    save_figure(figure, path)


def plot_curves(
    matrices: Mapping[str, Sequence[np.ndarray]], labels: Sequence[str], path: Path
) -> None:
    """Draw the accuracy of each domain over the stream, one panel per domain."""
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.report.plots import save_figure

    count = len(labels)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = Figure(figsize=(3 * columns, 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for number, axes in enumerate(grid.flat):
        if number >= count:
            axes.set_axis_off()
            continue
        for method, found in matrices.items():
            values = 100 * np.mean([A[:, number] for A in found], axis=0)
            axes.plot(range(1, len(values) + 1), values, label=method, linewidth=1.2)
        axes.axvline(number + 1, color="0.7", linewidth=0.8, linestyle=":")
        axes.set_title(labels[number], fontsize=9)
    grid.flat[0].legend(frameon=False, fontsize=6)
    save_figure(figure, path)


def write_study(
    parts: Sequence[str],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    lines: Mapping[str, Sequence[Mapping[str, float]]],
    out: Path,
) -> str:
    """Write tables and plots over methods; return the text.

    :param parts: what the text begins with.
    :param runs: per method and seed ``matrix``, ``labels`` and ``routing`` or None.
    :param lines: figures of the same runs.
    :param out: folder.
    """
    labels = next(iter(runs.values()))[0]["labels"]
    matrices = {m: [found["matrix"] for found in rows] for m, rows in runs.items()}
    texts = [*parts, domain_table(matrices, labels)]
    for method, rows in runs.items():
        if rows[0]["routing"] is not None:
            texts.append(f"{method}: routes of test images at the end, first seed")
            texts.append(routing_table(rows[0]["routing"], labels))
    text = "\n\n".join(texts)
    write_text(out / "tables.txt", text + "\n")
    plot_summary(lines, out / "summary.png")
    plot_curves(matrices, labels, out / "domains.png")
    return text
