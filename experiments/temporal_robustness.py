"""Temporal robustness: does a model know what came after it was trained?

Commands (from the repository root), two to three minutes on a free core:

    python experiments/temporal_robustness.py
    python experiments/temporal_robustness.py --new tiny-emoji:icons,runs/mine
    python experiments/temporal_robustness.py --old ViT-B-32:openai \\
        --new ViT-B-32:laion2b_s34b_b79k --data FOLDER

Earlier and later models (``--old``, ``--new``: ``NAME:TAG``, a file, a folder, or that
of a run, whose last step counts) are scored on each time step: retrieval of the step's
pairs, and classification with the same classes and prompts at all times; and on a
static set. A model goes stale if its gap, the first step minus the newest one, is
larger than that of later models. Intervals are of 95 %, a bootstrap over pictures;
galleries stay as they are.

Without ``--data`` the steps are the emoji of 2010 to 2024, drawn in a style that no
weights were trained on; classes are their 99 subgroups, described by the names that
their emoji of 2010 have; the static set is what a benchmark of 2010 would have asked
for, the names of its emoji among each other. ``--new`` is then by default
``emoji-2010`` trained on the emoji of all six steps, in ``OUT/trained``.

With ``--data`` the folder holds ``retrieval/YEAR`` and, if wanted, ``datacompnet/YEAR``
as TiC-CLIP's evaluation sets, one caption per picture; the static set is ImageNet with
its six shifts, where its folders are there too.

Source: Garg et al., ICLR 2024 (TiC-CLIP, arXiv 2310.16226), Figure 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from command_line import device_name, refusals, set_up
from torch import Tensor

BASE = "tiny-emoji:emoji-2010"
SHIFTS = "ImageNet and its shifts"
KINDS = ("retrieval", "classification")
SIDES = ("old", "new")
Prompts = Sequence[Sequence[str]]
Items = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """Pictures of a time step, with captions or with classes.

    :param pictures: read one by one.
    :param texts: caption of each; empty without captions.
    :param labels: class of each.
    :param prompts: of each class; empty without classes.
    """

    label: str
    pictures: Any
    texts: Sequence[str] = ()
    labels: Sequence[int] = ()
    prompts: Prompts = ()


# --------------------------------------------------------------------------- data
def embedded() -> dict[str, list[Step]]:
    """The emoji of each time step, by kind of task."""
    from avalanche_clip.benchmarks.datasets import EmojiImages, load_emoji_table
    from avalanche_clip.benchmarks.datasets.emoji import EMOJI_STEPS

    table, sheet = load_emoji_table(), EmojiImages("twemoji")
    prompts = [[name.replace("-", " ")] for name in table.subgroups]
    for row in np.flatnonzero(table.step == 0):
        prompts[table.subgroup[row]].append(table.names[row])
    found: dict[str, list[Step]] = {kind: [] for kind in KINDS}
    for number, step in enumerate(EMOJI_STEPS):
        rows = np.flatnonzero(table.step == number)
        drawings, names = [sheet[k] for k in rows], [table.names[k] for k in rows]
        classes = table.subgroup[rows].tolist()
        found["retrieval"].append(Step(step.label, drawings, names))
        found["classification"].append(
            Step(step.label, drawings, labels=classes, prompts=prompts)
        )
    return found


def released(folder: Path) -> dict[str, list[Step]]:
    """The evaluation sets in a folder, by kind of task, oldest year first."""
    from avalanche_clip.benchmarks.datasets.web.folder import WebFolder
    from avalanche_clip.evaluation.suites.tasks import class_prompts

    found: dict[str, list[Step]] = {}
    for kind, name in zip(KINDS, ("retrieval", "datacompnet"), strict=True):
        for path in sorted(p for p in (folder / name).glob("*") if p.is_dir()):
            data = WebFolder(path, "", captions="whole" if kind == KINDS[0] else None)
            texts = [captions[0] for captions in data.texts]
            labels = [] if data.labels is None else data.labels.tolist()
            prompts: Prompts = ()
            if data.kind == "classification":
                prompts = class_prompts(data.class_names, data.templates)
            step = Step(path.name, data, texts, labels, prompts)
            found.setdefault(kind, []).append(step)
    if len(found.get("retrieval", ())) < 2:
        raise ValueError(
            f"{folder / 'retrieval'} has fewer than two years; give the folder that "
            "holds retrieval/2016, retrieval/2017, ... as --data."
        )
    return found


# ------------------------------------------------------------------------ scoring
def measure(model: Any, steps: Mapping[str, Sequence[Step]], device: str) -> Any:
    """Score the items of all steps.

    :return: kind -> step -> for each picture the share of hits, 0, 1/2 or 1.
    """
    from avalanche_clip.evaluation.suites.suite import SuiteFeatures

    with SuiteFeatures().of(model, device=device) as encoded:
        return {
            kind: {step.label: _items(encoded, kind, step) for step in found}
            for kind, found in steps.items()
        }


def _items(encoded: Any, kind: str, step: Step) -> Items:
    from avalanche_clip.evaluation.functional import class_vectors

    # The same pictures may be those of several tasks.
    images = encoded.images(f"{step.label} {id(step.pictures)}", step.pictures)
    if kind == "retrieval":
        return retrieval_items(images, encoded.texts(step.texts), step.texts)
    texts = [text for row in step.prompts for text in row]
    owners = [number for number, row in enumerate(step.prompts) for _ in row]
    vectors = class_vectors(encoded.texts(texts), torch.tensor(owners))
    return hits(images, vectors, torch.tensor(step.labels))


def retrieval_items(images: Tensor, texts: Tensor, captions: Sequence[str]) -> Items:
    """Mean of both directions' hits at rank 1 for each pair; equal captions are one.

    :param images: ``(N, D)``.
    :param texts: of the captions, ``(N, D)``.
    """
    numbers = {text: k for k, text in enumerate(dict.fromkeys(captions))}
    owner = torch.tensor([numbers[text] for text in captions])
    first = torch.tensor([captions.index(text) for text in numbers])
    to_text = hits(images, texts[first], owner)
    to_image = np.zeros(len(captions))
    for part in torch.arange(len(captions)).split(1024):
        scores = texts[part] @ images.T
        own = owner[part, None] == owner[None]
        best = scores.masked_fill(~own, -2).amax(1)
        rival = scores.masked_fill(own, -2).amax(1)
        to_image[part] = (best > rival + 1e-6).numpy()
    return (to_text + to_image) / 2


def hits(images: Tensor, vectors: Tensor, labels: Tensor) -> Items:
    """Whether each picture's class scores best; a tie is a miss."""
    found = []
    for part, own in zip(images.split(1024), labels.split(1024), strict=True):
        scores = part @ vectors.T
        best = scores.gather(1, own[:, None]).squeeze(1)
        rival = scores.scatter(1, own[:, None], -2.0).amax(1)
        found.append(best > rival + 1e-6)
    return torch.cat(found).double().numpy()


# ------------------------------------------------------------------------ figures
def with_interval(groups: Sequence[Items]) -> list[float]:
    """Mean over groups of their means, with its bootstrap interval, in percent."""
    from avalanche_clip.evaluation.functional.intervals import bootstrap_interval

    value = float(np.mean([np.mean(group) for group in groups]))
    return [100 * number for number in (value, *bootstrap_interval(groups))]


def gap(items: Mapping[str, Items]) -> list[float]:
    """The first step minus the newest one."""
    first, *_, last = items.values()
    return with_interval([2 * first, -2 * last])


def excess(old: Sequence[Any], new: Sequence[Any]) -> list[float]:
    """How much larger the mean gap of old models is, over the same pictures.

    :param old: step -> items of each model.
    :param new: likewise.
    """
    steps = list(old[0])
    first, last = (
        np.mean([one[step] for one in old], 0) - np.mean([one[step] for one in new], 0)
        for step in (steps[0], steps[-1])
    )
    return with_interval([2 * first, -2 * last])


def distance(points: Mapping[str, Sequence[tuple[float, float]]]) -> float:
    """How far the line through old models lies below that through new ones.

    At the middle of the scores that both groups have; NaN if a group has fewer than
    two, or they share none.
    """
    x = {side: [a for a, _ in points[side]] for side in SIDES}
    low, high = max(map(min, x.values())), min(map(max, x.values()))
    if min(len({*one}) for one in x.values()) < 2 or low > high:
        return float("nan")
    lines = [np.polyfit(*zip(*points[side], strict=True), 1) for side in SIDES]
    at = [float(np.polyval(line, (low + high) / 2)) for line in lines]
    return at[1] - at[0]


def static_score(model: Any, data: Path | None, device: str) -> list[float]:
    """Score of what does not change, in percent, with an interval if there is one."""
    from avalanche_clip.evaluation.suites import ZeroShotSuite
    from avalanche_clip.evaluation.suites.zero_shot import datacomp_tasks

    name, metric, tasks = "emoji-2010", "acc1", ["emoji-2010"]
    if data is not None:
        name, metric = SHIFTS, "mean"
        tasks = datacomp_tasks()["aggregates"][SHIFTS]
    found = ZeroShotSuite(tasks, data=data).evaluate(model, device=device).get(name, {})
    keys = (metric, f"{metric}_low", f"{metric}_high")
    return [100 * found.get(key, float("nan")) for key in keys]


def summarise(scored: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All figures, in percent: values are ``[value, low, high]``.

    :param scored: side -> model -> kind -> step -> items, and ``static``.
    """
    kinds = [kind for kind in KINDS if kind in next(iter(scored["old"].values()))]
    models = {
        side: {
            name: {
                "static": one["static"],
                **{
                    kind: {
                        "steps": {s: with_interval([i]) for s, i in one[kind].items()},
                        "gap": gap(one[kind]),
                    }
                    for kind in kinds
                },
            }
            for name, one in found.items()
        }
        for side, found in scored.items()
    }
    rows = {side: list(found.values()) for side, found in models.items()}
    return {
        "models": models,
        "excess": {
            kind: excess(*([m[kind] for m in scored[side].values()] for side in SIDES))
            for kind in kinds
        },
        "distance": {
            "first step": distance({s: _points(r, "first") for s, r in rows.items()}),
            "static": distance({s: _points(r, "static") for s, r in rows.items()}),
        },
    }


def _points(rows: Sequence[Any], x: str) -> list[tuple[float, float]]:
    """Each model's score on the first step or the static set, and on the newest."""
    found = []
    for row in rows:
        steps = list(row["retrieval"]["steps"].values())
        found.append(((steps[0] if x == "first" else row["static"])[0], steps[-1][0]))
    return found


def text_of(summary: Mapping[str, Any]) -> str:
    """The table, and whether old models are the staler ones."""
    lines = []
    for side, models in summary["models"].items():
        for name, row in models.items():
            lines.append(f"{name} ({side})   static {_cell(row['static'])}")
            for kind in (k for k in KINDS if k in row):
                cells = {**row[kind]["steps"], "gap": row[kind]["gap"]}
                shown = "   ".join(f"{key} {_cell(v)}" for key, v in cells.items())
                lines.append(f"  {kind:15} {shown}")
    for kind, found in summary["excess"].items():
        stale = "larger" if found[1] > 0 else "not larger"
        lines.append(f"gap of old minus gap of new, {kind}: {_cell(found)}: {stale}")
    lines += [
        f"new above old at the same score on the {name}: {value:.1f}"
        for name, value in summary["distance"].items()
        if np.isfinite(value)
    ]
    return "\n".join(lines)


def _cell(found: Sequence[float]) -> str:
    value, low, high = found
    interval = f" ({low:.1f} to {high:.1f})" if np.isfinite(low) else ""
    return f"{value:.1f}{interval}" if np.isfinite(value) else "-"


def plot_first_figure(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the newest step against the first one, and against the static set."""
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.report.drawing import look, style
    from avalanche_clip.evaluation.report.plots import save_figure

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    names = {"first": "first step, R@1 (%)", "static": "static set, accuracy (%)"}
    for (x, label), ax in zip(names.items(), figure.subplots(1, 2), strict=True):
        style(ax)
        for number, (side, models) in enumerate(summary["models"].items()):
            colour, marker = look(number)
            for name, row in models.items():
                steps = list(row["retrieval"]["steps"].values())
                ends = [steps[0] if x == "first" else row["static"], steps[-1]]
                (a, *across), (b, *up) = ends
                bars = [np.abs(np.array([e]) - v).T for v, e in ((a, across), (b, up))]
                looks = {"fmt": marker, "color": colour, "capsize": 3}
                title = f"{name} ({side})"
                ax.errorbar(a, b, xerr=bars[0], yerr=bars[1], label=title, **looks)
            points = sorted(_points(list(models.values()), x))
            if len({a for a, _ in points}) > 1:
                line = np.polyfit(*zip(*points, strict=True), 1)
                at = np.array([points[0][0], points[-1][0]])
                ax.plot(at, np.polyval(line, at), color=colour, linewidth=1)
        if x == "first":
            top = max(ax.get_xlim()[1], ax.get_ylim()[1])
            ax.plot([0, top], [0, top], "--", color="#999999", linewidth=1)
        ax.set_xlabel(label)
        ax.set_ylabel("newest step, R@1 (%)")
        ax.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_over_time(summary: Mapping[str, Any], path: Path) -> None:
    """Draw the score of each model on each step."""
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.report.drawing import look, name_ticks, style
    from avalanche_clip.evaluation.report.plots import save_figure

    kinds = list(summary["excess"])
    figure = Figure(figsize=(5.5 * len(kinds), 4.2), layout="constrained")
    for kind, ax in zip(kinds, figure.subplots(1, len(kinds), squeeze=False)[0]):
        style(ax)
        for number, (name, row) in enumerate(_models(summary)):
            steps = row[kind]["steps"]
            values = np.array(list(steps.values()))
            colour, marker = look(number)
            bars = np.abs(values[:, 1:] - values[:, :1]).T
            looks = {"color": colour, "marker": marker, "capsize": 3, "label": name}
            ax.errorbar(range(len(steps)), values[:, 0], yerr=bars, **looks)
            name_ticks(ax, list(steps), room=5.5)
        ax.set_title(kind, loc="left", fontweight="bold")
        ax.set_ylabel("R@1 (%)" if kind == "retrieval" else "accuracy (%)")
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _models(summary: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for side, models in summary["models"].items():
        yield from ((f"{name} ({side})", row) for name, row in models.items())


# ------------------------------------------------------------------------ command
def train(folder: Path, device: str) -> Path:
    """Train ``emoji-2010`` on the emoji of all steps, with all that came before."""
    from tic_emoji import Config, run

    base = Config(pretrained="emoji-2010", iterations=120, gallery=False)
    run(replace(base, device=device), "cumulative-all", folder)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Score all models, and write figures, table and plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", help=f"earlier models; default {BASE}")
    parser.add_argument("--new", help="later models; default one trained here")
    parser.add_argument("--data", type=Path, help="folder of released sets")
    parser.add_argument("--out", type=Path, default=Path("runs/temporal_robustness"))
    parser.add_argument("--device", type=device_name, default="cpu")
    options = parser.parse_args(argv)
    if options.data is not None and not (options.old and options.new):
        parser.error("--data needs --old and --new: no emoji model is of use there")
    with refusals(parser):
        _main(options)


def _main(options: argparse.Namespace) -> None:
    from avalanche_clip.cli import find_models
    from avalanche_clip.common.files import write_json, write_text
    from avalanche_clip.common.plain import strict

    set_up()
    names = {side: getattr(options, side) for side in SIDES}
    found = {
        side: {name: find_models(name) for name in (text or "").split(",") if name}
        for side, text in (names | {"old": names["old"] or BASE}).items()
    }
    if not found["new"]:
        folder = train(options.out / "trained", options.device)
        found["new"] = {"emoji-2010 trained to 2024": find_models(str(folder))}
    data = options.data
    steps = embedded() if data is None else released(data)
    scored: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
    for side, models in found.items():
        for name, makers in models.items():
            model = list(makers.values())[-1]().to(options.device).eval()
            scored[side][name] = {
                **measure(model, steps, options.device),
                "static": static_score(model, data, options.device),
            }
    summary = summarise(scored)
    text = text_of(summary)
    print(text)
    write_json(options.out / "figures.json", strict(summary), checksum=True)
    write_text(options.out / "figures.txt", text + "\n")
    plot_first_figure(summary, options.out / "first_figure.png")
    plot_over_time(summary, options.out / "over_time.png")
    print(f"\nFigures and plots: {options.out}")


if __name__ == "__main__":
    main()
