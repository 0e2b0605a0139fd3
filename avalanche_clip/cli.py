"""Command line: ``python -m avalanche_clip evaluate MODEL --suite zero-shot``.

``report RUN`` writes the page of a run anew, ``compare RUN...`` that of several.

A model is NAME:TAG (tiny-emoji:icons, ViT-B-32:openai) or NAME:FILE, a folder that
holds a model, a weight file in such a folder, hf:ID, or the folder of a run, of which
each step is scored that it has kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Values = dict[str, dict[str, float]]
Makers = dict[str, Callable[[], Any]]

EMBEDDED = "emoji-2010,emoji-later,held-out-icons"
_HUBS = ("hf:", "hf-hub:")


# ------------------------------------------------------------------------- models
def find_models(text: str) -> Makers:
    """Find what a model argument means.

    :param text: see the module.
    :return: step of a run, ``""`` for a model that is none of a run -> maker.
    :raises ValueError: for a name without weights.
    """
    from avalanche_clip.models import create_dual_encoder
    from avalanche_clip.models.stored import kept_steps, load_kept

    path = Path(text).expanduser()
    if path.is_file():
        return {"": partial(create_dual_encoder, path.parent, path)}
    if path.is_dir():
        steps = kept_steps(path).items()
        kept: Makers = {step: partial(load_kept, file) for step, file in steps}
        return kept or {"": partial(create_dual_encoder, path)}
    name, _, weights = text.partition(":")
    if text.startswith(_HUBS):
        return {"": partial(create_dual_encoder, text)}
    if not (name and weights):
        raise ValueError(
            f"{text!r} is no file or folder, and as a name it has no weights; give "
            "NAME:TAG or NAME:FILE, such as tiny-emoji:icons."
        )
    return {"": partial(create_dual_encoder, name, weights)}


# ------------------------------------------------------------------------- suites
def _zero_shot(data: str | None, tasks: str | None) -> Any:
    from avalanche_clip.evaluation.suites import ZeroShotSuite

    if tasks is None:
        tasks = EMBEDDED if data is None else "tic-clip"
    return ZeroShotSuite(tasks.split(","), data=data)


def _mmvp_vlm(data: str | None, tasks: str | None) -> Any:
    from avalanche_clip.evaluation.suites import MMVPVLMSuite

    if data is None:
        raise ValueError("The suite mmvp-vlm needs --data with the folder MMVP_VLM.")
    return MMVPVLMSuite(Path(data).expanduser() / "MMVP_VLM")


def _blind_emoji(data: str | None, tasks: str | None) -> Any:
    from avalanche_clip.benchmarks.datasets import BlindEmoji
    from avalanche_clip.evaluation.suites import MMVPVLMSuite

    pairs: Any = BlindEmoji()
    return MMVPVLMSuite(pairs, name="blind-emoji", prompt="")


def _mirb(data: str | None, tasks: str | None) -> Any:
    from avalanche_clip.evaluation.suites import MIRBSuite

    return MIRBSuite(None if data is None else Path(data).expanduser() / "MIRB")


SUITES: dict[str, Callable[[str | None, str | None], Any]] = {
    "zero-shot": _zero_shot,
    "mmvp-vlm": _mmvp_vlm,
    "blind-emoji": _blind_emoji,
    "mirb": _mirb,
}
"""Name -> maker of a suite, from the folder of data and the names of tasks."""
READERS = {"--data": {"zero-shot", "mmvp-vlm", "mirb"}, "--tasks": {"zero-shot"}}
"""Option -> suites that it is for."""


def make_suites(options: argparse.Namespace) -> list[Any]:
    """Make the suites of a command.

    :raises ValueError: for an option that none of them reads.
    """
    for option, readers in READERS.items():
        given = getattr(options, option.strip("-"))
        if given is not None and readers.isdisjoint(options.suite):
            raise ValueError(
                f"{option} is for {', '.join(sorted(readers))}, and has no effect on "
                f"{', '.join(options.suite)}; leave it out."
            )
    return [SUITES[name](options.data, options.tasks) for name in options.suite]


class Results:
    """Values that were found, in a file if there is a folder.

    :param folder: None to store nothing.
    :param bar: moves by one for each task.
    """

    def __init__(self, folder: Path | None, bar: Any):
        from avalanche_clip.common.files import read_json

        self.path, self.bar = folder and folder / "values.json", bar
        self.stored: dict[str, Values] = {}
        if self.path is not None and self.path.exists():
            rewrite = "delete it, and evaluate again"
            self.stored = read_json(self.path, checksum=True, rewrite=rewrite)["values"]

    def score(self, suite: Any, model: Any, device: str) -> Values:
        """Score a model, task by task where a suite is a set of independent ones."""
        from avalanche_clip.evaluation.suites import ZeroShotSuite

        suite.check(model)
        state = _state_of(model)
        if not isinstance(suite, ZeroShotSuite):
            return self._of(suite, state, model, device)
        values: Values = {}
        for task in suite.tasks:
            part = ZeroShotSuite([task])
            part.features = suite.features  # tasks have prompts in common
            values |= self._of(part, state, model, device)
        return values | suite.averages(values)

    def _of(self, suite: Any, state: str, model: Any, device: str) -> Values:
        """Values that are there, else those that are computed, and stored."""
        from avalanche_clip.common.files import write_json
        from avalanche_clip.common.plain import strict

        key = _hash([state, suite.name, suite.identity()])
        if key not in self.stored:
            self.stored[key] = strict(suite.evaluate(model, device=device))
            if self.path is not None:
                write_json(self.path, {"values": self.stored}, checksum=True)
        self.bar.update()
        return {
            task: {k: math.nan if v is None else v for k, v in values.items()}
            for task, values in self.stored[key].items()
        }


def _state_of(model: Any) -> str:
    """What the values of a model depend on: weights, tokenizer, preprocessing."""
    from avalanche_clip import __version__
    from avalanche_clip.benchmarks.items.prepare import describe
    from avalanche_clip.evaluation.suites.suite import tokenizer_mark

    parts = [model.state_fingerprint(), model.config, describe(model.transform(False))]
    return _hash([__version__, *parts, tokenizer_mark(model.tokenizer)])


def _hash(parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


# ----------------------------------------------------------------------- evaluate
def evaluate(options: argparse.Namespace) -> None:
    """Score models with suites; print and write what was found.

    :param options: see :func:`main`.
    """
    from avalanche_clip.common.progress import bar

    models = [(t, *found) for t in options.models for found in find_models(t).items()]
    suites = make_suites(options)
    tasks = sum(len(getattr(suite, "tasks", [suite])) for suite in suites)
    found: dict[str, dict[str, Values]] = {suite.name: {} for suite in suites}
    total = len(models) * tasks
    with bar("", total, unit="task", delay=0.0, leave=True) as shown:
        results = Results(options.out, shown)
        for text, step, make in models:
            name = " ".join(filter(None, (text, step)))
            shown.set_description(name)
            model = make().to(options.device).eval()
            for suite in suites:
                found[suite.name][name] = results.score(suite, model, options.device)
    _write(suites, found, options)


def _write(suites: Sequence[Any], found: Any, options: argparse.Namespace) -> None:
    """Print what was found, and write it as JSON, and as a table for each suite."""
    from avalanche_clip.common.files import json_text, write_json
    from avalanche_clip.common.plain import strict

    folder = options.out
    rows = {
        suite.name: suite.table(
            found[suite.name], folder and folder / f"{suite.name}.csv"
        )
        for suite in suites
    }
    missing = {suite.name: suite.missing for suite in suites if suite.missing}
    content = strict({"suites": rows, "missing": missing})
    if folder is not None:
        write_json(folder / "results.json", content, checksum=True)
    shown = json_text(content, "the output", indent=1) if options.json else _text(rows)
    sys.stdout.write(shown + "\n")
    for name, where in missing.items():
        for task, what in where.items():
            sys.stderr.write(f"missing: {name}, {task}: {what}\n")
    if not any(rows.values()):
        raise ValueError("Nothing was scored: all data sets are missing.")


def _text(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Main metrics, to read."""
    from avalanche_clip.evaluation.report.html import score

    lines: dict[Any, list[str]] = {}
    for suite, row in ((suite, row) for suite, part in rows.items() for row in part):
        key = (row["checkpoint"], suite, row["task"])
        value, *ends = (score(row[k], row["metric"]) for k in ("value", "low", "high"))
        interval = "" if row["low"] is None else f" ({'-'.join(ends)})"
        lines.setdefault(key, [*key, row["metric"], value + interval])
    widths = [max(map(len, column)) for column in zip(*lines.values(), strict=True)]
    return "\n".join(
        "  ".join(map(str.ljust, line, widths)).strip() for line in lines.values()
    )


# ---------------------------------------------------------------- report, compare
def report(options: argparse.Namespace) -> None:
    """Write the page of a run anew, from its results; print its path.

    :param options: see :func:`main`.
    """
    from avalanche_clip.evaluation.report import write_report

    sys.stdout.write(f"{write_report(options.folder)}\n")


def compare(options: argparse.Namespace) -> None:
    """Write a page that compares runs; print its path.

    Folders of one name are repetitions, and so are the runs in the folders of a folder
    that is no run itself.

    :param options: see :func:`main`.
    :raises ValueError: if there are more names than folders, or fewer.
    """
    from avalanche_clip.evaluation.report import write_comparison
    from avalanche_clip.evaluation.report.results import load_results

    folders = options.folders
    given = options.names
    names = None if given is None else [name.strip() for name in given.split(",")]
    if names is not None and (len(names) != len(folders) or not all(names)):
        raise ValueError(
            f"--names {given} gives {len(list(filter(None, names)))} names for "
            f"{len(folders)} folders; give one for each, with commas between."
        )
    runs = []
    for folder, name in zip(folders, names or [None] * len(folders), strict=True):
        for run in _runs_in(folder):
            found = load_results(run)
            runs.append(found if name is None else {**found, "method": name})
    page = write_comparison(options.out, runs, metric=options.metric)
    sys.stdout.write(f"{page}\n")


def _runs_in(folder: Path) -> list[Path]:
    """The folder of a run, or those of runs that lie in a folder."""
    inside = sorted(path.parent for path in folder.glob("*/results.json"))
    return [folder] if (folder / "results.json").exists() or not inside else inside


# --------------------------------------------------------------------------- main
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m avalanche_clip", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("evaluate", help="score models", description=__doc__)
    one.set_defaults(command=evaluate)
    one.add_argument("models", nargs="+", metavar="MODEL")
    one.add_argument("--suite", type=_suites, required=True, help=", ".join(SUITES))
    one.add_argument("--data", help="folder with the data sets")
    one.add_argument("--tasks", help=f"of zero-shot; default {EMBEDDED}, or tic-clip")
    one.add_argument("--out", type=_folder, help="folder of results, kept")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument("--device", default="cpu")
    text = "write report.html of a run anew"
    one = commands.add_parser("report", help=text, description=report.__doc__)
    one.set_defaults(command=report)
    one.add_argument("folder", type=_folder, help="of a finished run")
    text = "compare runs in comparison.html"
    one = commands.add_parser("compare", help=text, description=compare.__doc__)
    one.set_defaults(command=compare)
    one.add_argument("folders", nargs="+", type=_folder, help="of finished runs")
    one.add_argument("--names", help="of the methods, one per folder: a,b")
    one.add_argument("--metric", help="of plots and matrices; default mean R@1")
    one.add_argument("--out", type=_folder, default=Path(), help="default: here")
    return parser


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("give the name of a folder")
    return Path(text)


def _suites(text: str) -> list[str]:
    from avalanche_clip.common.checks import require_known

    names = list(dict.fromkeys(text.split(",")))
    try:
        require_known(names, SUITES, "suites")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what is refused is said in one line.

    :param arguments: default those of the process.
    :return: 0, or 2 if something was refused.
    """
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0
