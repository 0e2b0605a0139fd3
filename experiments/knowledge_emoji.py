"""Knowledge over a run: what a model still knows while it learns newer emoji.

Commands (from the repository root):

    python experiments/knowledge_emoji.py
    python experiments/knowledge_emoji.py --seeds 0,1,2

A tiny CLIP that knows a web of icons learns the emoji of six time steps, as the demo of
``tic_emoji.py`` does, whose settings it takes. Before the stream and after every step
it is asked for more than the stream's own retrieval: names of emoji it has not learned
yet, of earlier ones and of held-out icons among others of their kind (zero-shot), which
pairs of drawings look alike to it although they do not to a reference (blind pairs
that are born and that heal), which of two alike drawings a name belongs to (blind
emoji), and questions about several pictures (MIRB's rules on emoji sheets). Each run's
``report.html`` shows all over time, ``comparison.html`` the methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import check_start, refusals, set_up, study_parser
from figures import write_figures
from tic_emoji import DEMO_CONFIG, Config, run, settings_of

METHODS = ("sequential", "cumulative-exp", "mod-x")
START = "icons"
STEPS = ("2010", "2014", "2015", "2016-2017", "2018-2019", "2020-2024")
FIGURES = {
    "names, 2010": ("zero-shot", "emoji-2010", "acc1"),
    "names, newest": ("zero-shot", "emoji-2020-2024", "acc1"),
    "held-out icons": ("zero-shot", "held-out-icons", "acc1"),
    "alike drawings": ("blind-emoji", "all", "text_to_image_acc"),
    "several images": ("mirb", "Perception", "acc"),
    "blind pairs": ("blind-pairs", "all", "blind_count"),
    "born": ("blind-pairs", "all", "born_count"),
    "healed": ("blind-pairs", "all", "healed_count"),
}
"""Name -> suite, task and metric of what is shown over time."""
NOTE = """\
in percent, at the end of the stream; base: the model before it. in-domain, backward,
forward: recall at 1 on the time steps, means of the diagonal, of the part below and of
the part above it; all steps: mean over them. names: zero-shot accuracy among the names
of a step; alike drawings: blind emoji, chance 25; several images: MIRB's perception on
emoji sheets. blind pairs: number among all pairs of drawings, born and healed since the
model before the stream."""
RETRIEVAL = "all steps"


def make_suites() -> list[Any]:
    """Return new suites: they keep what they saw in a run."""
    from avalanche_clip.benchmarks.datasets import BlindEmoji, EmojiImages
    from avalanche_clip.evaluation.suites import (
        BlindPairsSuite,
        MIRBSuite,
        MMVPVLMSuite,
        ZeroShotSuite,
    )
    from avalanche_clip.models import drawing_features

    tasks = [*(f"emoji-{step}" for step in STEPS), "held-out-icons"]
    return [
        ZeroShotSuite(tasks),
        MMVPVLMSuite(BlindEmoji(), name="blind-emoji", prompt=""),
        MIRBSuite(),
        BlindPairsSuite(EmojiImages("twemoji"), drawing_features),
    ]


def curves(result: Any) -> dict[str, list[float]]:
    """What is known before the stream and after each step, fractions in percent."""
    from avalanche_clip.evaluation.report.html import is_fraction

    before, E = result.before, result.E
    found = {RETRIEVAL: [100 * float(row.mean()) for row in (before, *E)]}
    for name, (suite, task, metric) in FIGURES.items():
        scale = 100 if is_fraction(metric) else 1
        rows = result.results["suites"][suite].values()
        found[name] = [scale * row[task].get(metric, math.nan) for row in rows]
    return found


def line_of(result: Any) -> dict[str, float]:
    """Figures of one run at its end."""
    levels = result.summary["test"]["mean_R@1"]
    keys = ("in_domain", "backward", "forward")
    last = {name: curve[-1] for name, curve in curves(result).items()}
    return {**{key: 100 * levels[key] for key in keys}, **last}


def base_of(result: Any) -> dict[str, float]:
    """The same figures of the model before the stream."""
    first = {name: curve[0] for name, curve in curves(result).items()}
    return {name: first.get(name, math.nan) for name in line_of(result)}


def plot(runs: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Draw each figure over time, mean over seeds, one line per method."""
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.report.drawing import look, name_ticks, style
    from avalanche_clip.evaluation.report.plots import save_figure

    found = {method: [curves(r) for r in rows] for method, rows in runs.items()}
    names = list(next(iter(found.values()))[0])
    figure = Figure(figsize=(15, 9.5), layout="constrained")
    for name, ax in zip(names, figure.subplots(3, 3).flat, strict=True):
        style(ax)
        for number, (method, seeds) in enumerate(found.items()):
            colour, marker = look(number)
            values = np.array([one[name] for one in seeds])
            bars = values.std(0, ddof=1) if len(values) > 1 else None
            looks = {"color": colour, "marker": marker, "capsize": 3, "label": method}
            ax.errorbar(range(values.shape[1]), values.mean(0), yerr=bars, **looks)
        name_ticks(ax, ["before", *STEPS], room=5)
        ax.set_ylim(bottom=0)
        ax.set_title(name, loc="left", fontweight="bold")
    figure.axes[0].legend(frameon=False)
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = study_parser(__doc__, METHODS, START)
    options = parser.parse_args(argv)
    if options.search or options.validation:
        parser.error("settings are those of tic_emoji.py; search and validate there")
    methods = list(dict.fromkeys((options.methods or ",".join(METHODS)).split(",")))
    if unknown := sorted(set(methods) - set(METHODS)):
        parser.error(f"unknown method {unknown[0]}; use {', '.join(METHODS)}")
    with refusals(parser):
        _main(options, methods)


def _main(options: Any, methods: list[str]) -> None:
    from avalanche_clip.evaluation.report.comparison import write_comparison

    set_up()
    check_start(Config.model, options.pretrained)
    out = Path(options.out or "runs/knowledge_emoji")
    base = replace(DEMO_CONFIG, pretrained=options.pretrained, device=options.device)
    configs = {method: settings_of(base, "demo", method) for method in methods}
    runs: dict[str, list[Any]] = {}
    for method, config in configs.items():
        for seed in options.seeds:
            folder = out / method / f"seed_{seed}"
            suites = make_suites()
            result = run(replace(config, seed=seed), method, folder, suites=suites)
            runs.setdefault(method, []).append(result)
            print(f"{method}, seed {seed}: report in {folder / 'report.html'}")
    lines = {method: [line_of(r) for r in rows] for method, rows in runs.items()}
    bases = [base_of(r) for r in next(iter(runs.values()))]
    facts = {
        "study": "knowledge_emoji",
        "pretrained": options.pretrained,
        "seeds": options.seeds,
        "settings": {method: asdict(config) for method, config in configs.items()},
    }
    print("\n" + write_figures({"base": bases, **lines}, out, facts, NOTE))
    plot(runs, out / "knowledge.png")
    report = write_comparison(out, [r.out_dir for rows in runs.values() for r in rows])
    print(f"\nPlots and tables over methods: {report}")


if __name__ == "__main__":
    main()
