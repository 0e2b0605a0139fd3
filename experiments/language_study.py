"""What the study of languages needs beside its runs: testing, table, plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write_figures
from search import same_facts
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.common.plain import strict

TEXT_TO_IMAGE = "text_to_image_R@1"
BOTH = "mean_R@1"
IMAGE_TO_TEXT = "image_to_text_R@1"
METRICS = (TEXT_TO_IMAGE, IMAGE_TO_TEXT, BOTH)
STUDY_FILE = "study.json"
TABLE = ("std before", "std after", "std of new rows")
PLAIN, TEIR = "cll-clip", "teir"
PARTS = ("init-only", "regularize-only")
GAINS = ("AR", "F", "F en", "en", "new", "icons")

NOTE = """\
recall at 1 in percent, text to image (both: mean of both directions), mean ± standard
deviation over seeds. AR: mean over languages after the last one; F: mean drop from the
best earlier result since a language was learned; F en, en: forgetting and recall of
English at the end; new: right after each language was learned; icons: English names of
held-out icons at the end, image to text, {0:.1f} before; reachable: new tokens that the
tokenizer can produce; std: deviation of the token table's entries, thousandths, before
(what TEIR draws from; plain rows are drawn with 20) and after; old moved: how far the
old rows went, of their length. Rows before are {length before:.3f} long (deviation
{std of lengths before:.3f}), TEIR's first ones {length of a row of TEIR:.3f}"""
GAIN_NOTE = """\
gain on plain CLL-CLIP, seed by seed (F: negative is better); share: of TEIR's gain in
average recall"""


# ------------------------------------------------------------------- testing
def seen_only(benchmark: Any) -> type:
    """Return a form of ``CLLCLIP`` that is tested on languages learned so far.

    Average recall and forgetting read nothing else. Before the first language it is
    tested on all. Test items are read once and kept, shortest caption first, so that
    the captions of a batch are of similar length.

    :param benchmark: the stream to be learned.
    """
    from avalanche_clip.training.supervised import CLLCLIP

    learned = [tuple(e.languages) for e in benchmark.train_stream]
    items: dict[tuple[str, int], list[Any]] = {}

    class SeenLanguages(CLLCLIP):
        """``CLLCLIP``, tested on the languages learned so far."""

        def eval(self, exp_list: Any, **kwargs: Any) -> dict[str, Any]:
            """Evaluate on the languages of a stream that were learned."""
            done = self.clock.train_exp_counter
            seen = {name for names in learned[:done] for name in names}
            tested = [e for e in exp_list if e.language in seen or not done]
            values = super().eval(tested, **kwargs)
            # Avalanche also returns the last values of experiences left out
            ends = tuple(f"/Exp{e.current_experience:03d}" for e in tested)
            return {
                key: value
                for key, value in values.items()
                if "/Exp" not in key or key.endswith(ends)
            }

        def make_eval_dataloader(self, **kwargs: Any) -> None:
            """Read the items of an experience the first time only."""
            data, experience = self.adapted_dataset, self.experience
            key = (experience.origin_stream.name, experience.current_experience)
            if key not in items:
                read = [data[k] for k in range(len(data))]
                items[key] = sorted(read, key=lambda item: len(item[1]))
            self.dataloader = DataLoader(
                items[key], batch_size=self.eval_mb_size, collate_fn=data.collate_fn
            )

    return SeenLanguages


# ------------------------------------------------------------ runs on the disk
def save_study(
    folder: str | Path,
    settings: Mapping[str, Any],
    result: Any,
    growth: Iterable[Any],
    table: Mapping[str, float],
) -> dict[str, Any]:
    """Write what tables and plots need of a finished run, and return it."""
    stream, other = result.matrices
    icons = result.matrices[other][IMAGE_TO_TEXT]
    found = result.matrices[stream]
    study = {
        "settings": dict(settings),
        "labels": list(result.results["data"]["labels"][stream]),
        "matrices": {name: _numbers(found[name]["E"]) for name in METRICS},
        "before": {name: _numbers(found[name]["before"]) for name in METRICS},
        "icons": [*icons["before"].tolist(), *icons["E"][:, 0].tolist()],
        "table": strict(dict(table)),
        "growth": [
            {
                "language": part.language,
                "new": part.num_new_tokens,
                "reachable": part.reachable,
                "size": part.new_size,
            }
            for part in growth
        ],
        "seconds": {key: sum(rows) for key, rows in result.results["seconds"].items()},
    }
    write_json(Path(folder) / STUDY_FILE, study, checksum=True)
    return _arrays(study)


def read_study(
    folder: str | Path, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What :func:`save_study` has written of a run with these settings, or None."""
    path = Path(folder) / STUDY_FILE
    if not path.is_file():
        return None
    study = read_json(path, checksum=True, rewrite="delete it and run it again")
    free = {"device": None}
    same = same_facts({**study["settings"], **free}, {**settings, **free})
    return _arrays(study) if same else None


def _numbers(values: np.ndarray) -> list[Any]:
    """Lists of numbers, None where nothing was measured."""
    return np.where(np.isnan(values), None, values).tolist()


def _arrays(study: dict[str, Any]) -> dict[str, Any]:
    parts = {
        kind: {name: np.array(rows, dtype=float) for name, rows in study[kind].items()}
        for kind in ("matrices", "before")
    }
    table = {k: math.nan if v is None else v for k, v in study["table"].items()}
    return {**study, **parts, "table": table}


def table_facts(base: Tensor, end: Tensor) -> dict[str, float]:
    """What became of a token table, whose first rows are those of the base.

    :param base: before the stream, ``(V, d)``.
    :param end: after it, ``(V', d)``, ``V' >= V``.
    :return: mean and deviation of all entries before (what TEIR draws from) and after,
        mean and deviation of the rows' lengths before (where they differ much, TEIR's
        rows are longer than most), the deviation of the new rows alone, and how far
        the old rows went, as a share of their length (Frobenius).
    """
    lengths = base.norm(dim=1)
    old, new = end[: len(base)], end[len(base) :]
    drift = torch.linalg.norm(old - base) / torch.linalg.norm(base)
    return {
        "mean before": float(base.mean()),
        "std before": float(base.std()),
        "length before": float(lengths.mean()),
        "std of lengths before": float(lengths.std()),
        "length of a row of TEIR": float(base.std()) * math.sqrt(base.shape[1]),
        "std after": float(end.std()),
        "std of new rows": float(new.std()) if len(new) else math.nan,
        "drift of old rows": float(drift),
    }


# -------------------------------------------------------------------- figures
def study_line(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures of one run, recall in percent.

    A stream with a single step (all languages at once) has no forgetting.
    """
    recall = {name: 100 * found["matrices"][name] for name in (TEXT_TO_IMAGE, BOTH)}
    main, both = recall[TEXT_TO_IMAGE], recall[BOTH]
    values, pooled = _summary(main), _summary(both)
    growth, table = found["growth"], found["table"]
    new = sum(part["new"] for part in growth)
    reachable = sum(part["reachable"] for part in growth)
    nothing = float("nan")
    return {
        "AR": values["average_recall"],
        "F": values["forgetting"],
        "F en": values["first_task_forgetting"],
        "en": main[-1, 0],
        "new": np.diagonal(main).mean() if len(main) > 1 else nothing,
        "icons": 100 * found["icons"][-1],
        "icons lost": 100 * (found["icons"][0] - found["icons"][-1]),
        "AR both": pooled["average_recall"],
        "F both": pooled["forgetting"],
        "F en both": pooled["first_task_forgetting"],
        "tokens/1000": growth[-1]["size"] / 1000 if growth else nothing,
        "reachable %": 100 * reachable / new if new else nothing,
        **{name: 1000 * table[name] for name in TABLE},
        "old moved %": 100 * table["drift of old rows"],
    }


def _summary(recall: np.ndarray) -> dict[str, float]:
    from avalanche_clip.evaluation.functional import recall_forgetting

    if len(recall) > 1 or recall.shape[1] == 1:
        return recall_forgetting(recall)
    nothing = dict.fromkeys(("forgetting", "first_task_forgetting"), float("nan"))
    return {"average_recall": float(recall.mean()), **nothing}


def gain_lines(
    lines: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, list[dict[str, float]]]:
    """What TEIR and its parts gain on plain CLL-CLIP at the same rate, seed by seed.

    :param lines: method -> figures of its runs.
    :return: empty where TEIR or plain CLL-CLIP was not run.
    """
    gains: dict[str, list[dict[str, float]]] = {}
    for method, found in lines.items():
        name, colon, rate = method.partition(":")
        plain, teir = (lines.get(f"{m}{colon}{rate}") for m in (PLAIN, TEIR))
        if name not in (TEIR, *PARTS) or plain is None or teir is None:
            continue
        gains[method] = []
        for one, low, high in zip(found, plain, teir, strict=True):
            gain = {f"{key}+": one[key] - low[key] for key in GAINS}
            whole = high["AR"] - low["AR"]
            gain["share %"] = 100 * gain["AR+"] / whole if whole else math.nan
            gains[method].append(gain)
    return gains


def write_study(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    out: Path,
    facts: Mapping[str, Any],
) -> str:
    """Write the figures of all runs, and what TEIR and its parts gain; return the text.

    The gains are in folder ``gains``, where plain CLL-CLIP and TEIR were run.
    """
    lines = {method: [study_line(f) for f in rows] for method, rows in runs.items()}
    names = list(next(iter(lines.values()))[0])
    cut = names.index("AR both")
    first = next(iter(runs.values()))[0]
    text = write_figures(
        lines,
        out,
        {**facts, "icons before": first["icons"][0], "table": first["table"]},
        NOTE.format(100 * first["icons"][0], **first["table"]),
        tables=[names[:cut], names[cut : cut + 5], names[cut + 5 :]],
    )
    gains = gain_lines(lines)
    if gains:
        text += "\n\n" + write_figures(gains, out / "gains", facts, GAIN_NOTE)
    return text


# ---------------------------------------------------------------------- plots
def write_plots(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], out: str | Path
) -> None:
    """Draw recall of every language over tasks, and summaries over tasks."""
    from avalanche_clip.evaluation.report.plots import save_figure

    labels = next(iter(runs.values()))[0]["labels"]
    streams = {
        method: np.stack([100 * found["matrices"][TEXT_TO_IMAGE] for found in rows])
        for method, rows in runs.items()
    }
    save_figure(plot_languages(streams, labels), Path(out) / "languages.png")
    several = {m: E for m, E in streams.items() if E.shape[1] > 1}
    if several:
        save_figure(plot_curves(several, labels), Path(out) / "curves.png")


def plot_languages(streams: Mapping[str, np.ndarray], labels: Sequence[str]) -> Any:
    """Draw a heat map per method: rows are tasks, columns languages.

    :param streams: per method percent ``(seeds, T, J)``, NaN where not tested.
    :param labels: J languages.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(streams), 3)
    rows = -(-len(streams) // columns)
    side = max(3.2, 0.125 * len(labels) + 0.9)
    figure = Figure(
        figsize=(side * columns + 0.8, side * rows + 0.2), layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    colours = colormaps["cividis"].copy()
    colours.set_bad("#EDEDED")
    top = max(float(np.nanmax(E.mean(axis=0))) for E in streams.values())
    size = 7 if len(labels) > 12 else 10
    for axes in grid.flat[len(streams) :]:
        axes.set_axis_off()
    for axes, (method, found) in zip(grid.flat, streams.items(), strict=False):
        E = found.mean(axis=0)
        image = axes.imshow(
            np.ma.masked_invalid(E), cmap=colours, vmin=0, vmax=top, aspect="auto"
        )
        names = labels[: len(E)] if len(E) > 1 else ["all"]
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(len(E)), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set_title(method, loc="left", fontsize=11, fontweight="bold")
        axes.set_ylabel("after learning", fontsize=9)
    bar = figure.colorbar(image, ax=list(grid.flat), fraction=0.03, pad=0.01)
    bar.set_label("text to image, recall at 1 (%)")
    return figure


def plot_curves(streams: Mapping[str, np.ndarray], labels: Sequence[str]) -> Any:
    """Draw average recall, forgetting and English recall over the tasks.

    :param streams: per method percent ``(seeds, T, J)``.
    :param labels: J languages.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.functional import recall_forgetting_curves

    titles = {
        "average_recall": "Mean over languages learned so far",
        "forgetting": "Forgetting of earlier languages",
        "english": "English",
    }
    figure = Figure(figsize=(17, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(titles))
    for number, (method, found) in enumerate(streams.items()):
        curves = [recall_forgetting_curves(E) for E in found]
        for key, axes in zip(titles, panels, strict=True):
            rows = found[:, :, 0] if key == "english" else [c[key] for c in curves]
            _band(axes, np.asarray(rows), method, number)
    for (key, title), axes in zip(titles.items(), panels, strict=True):
        _dress(axes, title, labels)
        axes.set_ylabel("drop in percent" if key == "forgetting" else "recall at 1 (%)")
        if key != "forgetting":
            axes.set_ylim(bottom=0)
    panels[-1].legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9
    )
    return figure


def _band(axes: Any, values: np.ndarray, method: str, number: int) -> None:
    """Draw the mean over seeds, and one standard deviation around it."""
    x = np.arange(1, values.shape[1] + 1)
    dash = ("-", "--", ":", "-.")[number // 8 % 4]
    colour = f"C{number % 8}"
    mean = values.mean(axis=0)
    axes.plot(x, mean, dash, color=colour, linewidth=1.6, label=method)
    if len(values) > 1:
        spread = values.std(axis=0, ddof=1)
        axes.fill_between(
            x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0
        )


def _dress(axes: Any, title: str, labels: Sequence[str]) -> None:
    places = range(1, len(labels) + 1)
    size = 7 if len(labels) > 12 else 10
    axes.set_xticks(places, labels, rotation=90, fontsize=size)
    axes.set_xlabel("after learning")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)
