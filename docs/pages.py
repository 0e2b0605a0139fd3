"""Pages that are made from the package itself, when the documentation is built."""

from __future__ import annotations

import configparser
import inspect
import json
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from avalanche_clip._exports import EXPORTS, ROOT

REPOSITORY = Path(__file__).parents[1]
FACES = {
    "training": "Runs",
    "training.supervised": "Strategies",
    "training.plugins": "Plugins",
    "training.templates": "Templates and the contract of a method",
    "models": "Models",
    "losses": "Losses",
    "benchmarks": "Data and streams",
    "benchmarks.classic": "Published and embedded streams",
    "benchmarks.datasets": "Readers",
    "benchmarks.datasets.mtil": "Readers of MTIL's data sets",
    "evaluation": "Loggers",
    "evaluation.functional": "Metrics as functions",
    "evaluation.metrics": "Metrics for an evaluator",
    "evaluation.suites": "Suites",
    "evaluation.report": "Reports",
    "evaluation.plots": "Figures",
    "checkpointing": "Checkpoints",
    "distributed": "Several processes",
    "budget": "Compute",
    "": "Files",
}
"""Face -> heading of its page, in the order of the reference."""
SCORES = {
    "iterations": "iterations",
    "seconds": "seconds",
    "2010, image to text": "test image_to_text_R@1",
    "2010, text to image": "test text_to_image_R@1",
    "all 1,911, image to text": "gallery image_to_text_R@1",
    "later emoji, mean of 9 groups": "later groups image_to_text_R@1, mean",
    "the same without Flags": "later groups image_to_text_R@1, mean without Flags",
    "held-out icons, image to text": "held-out icons image_to_text_R@1",
}
"""What the card of the embedded weights shows -> its name in their files."""
TAGS = ("emoji-2010", "icons")
SUPPORTED = ("torch", "torchvision", "avalanche-lib", "open_clip_torch", "transformers")


def shown() -> dict[str, list[tuple[str, str]]]:
    """Face -> (name, defining module) of what its page shows, each name once."""
    found: dict[str, list[tuple[str, str]]] = {face: [] for face in FACES}
    for module, faces in EXPORTS.items():
        taken: set[str] = set()
        for face, names in faces.items():
            fresh = [n for n in names.replace("*", "").split() if n not in taken]
            found[face] += [(name, module) for name in fresh]
            taken |= set(fresh)
    module = import_module(f"{ROOT}.distributed")
    found["distributed"] += [(name, "distributed") for name in own_names(module)]
    return found


def own_names(module: object) -> list[str]:
    """Public functions and classes that a module defines."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "") == module.__name__
        and (inspect.isfunction(value) or inspect.isclass(value))
    ]


def write(folder: Path) -> None:
    """Write all of these pages below ``api``, ``support.rst`` and ``scores.inc``."""
    (folder / "api").mkdir(exist_ok=True)
    listed = []
    for face, names in shown().items():
        if names:
            listed.append(face or "root")
            text = "\n".join(reference(face, sorted(names)))
            keep(folder / "api" / f"{face or 'root'}.rst", text)
    index = [*title("Reference"), *toctree(listed)]
    keep(folder / "api" / "index.rst", "\n".join(index))
    keep(folder / "support.rst", "\n".join(support()))
    keep(folder / "scores.inc", "\n".join(scores()))


def keep(path: Path, text: str) -> None:
    """Write a page unless it is there already, so that builds stay short."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def title(text: str) -> list[str]:
    """Heading of a page."""
    return [text, "=" * len(text), ""]


def toctree(names: list[str]) -> list[str]:
    """List of the pages below a page."""
    return [".. toctree::", "   :maxdepth: 1", "", *(f"   {name}" for name in names)]


def reference(face: str, names: list[tuple[str, str]]) -> Iterator[str]:
    """Lines of the page of one face."""
    where = f"{ROOT}.{face}" if face else ROOT
    yield from title(FACES[face])
    yield f"Import these from ``{where}``."
    for name, module in names:
        value = getattr(import_module(f"{ROOT}.{module}"), name)
        yield ""
        if inspect.isclass(value) or inspect.isfunction(value):
            kind = "autoclass" if inspect.isclass(value) else "autofunction"
            yield f".. {kind}:: {ROOT}.{module}.{name}"
        else:
            yield f".. autodata:: {ROOT}.{module}.{name}"
            yield "   :no-value:"
    yield ""


def support() -> Iterator[str]:
    """Lines of the table of supported versions, from setup.cfg and constraints."""
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    wanted = config["options"]["install_requires"]
    pinned = (REPOSITORY / "requirements" / "constraints.txt").read_text("utf-8")
    yield from title("Supported versions")
    yield "Ranges are those of ``setup.cfg``; tests run with the versions on the right,"
    yield "which ``requirements/constraints.txt`` pins."
    yield ""
    yield ".. list-table::"
    yield "   :header-rows: 1"
    yield ""
    rows = [("package", "supported", "tested")]
    python = config["options"]["python_requires"]
    rows.append(("Python", python, "see the package of your system"))
    for name in SUPPORTED:
        spec = re.search(rf"^{re.escape(name)}(.*)$", wanted, re.M)
        versions = re.findall(rf"^{re.escape(name)}==(\S+)(.*)$", pinned, re.M)
        tested = ", ".join(v + comment(marker) for v, marker in versions)
        rows.append((name, spec[1].strip() if spec else "", tested))
    yield from cells(rows)


def scores() -> Iterator[str]:
    """Lines of the tables of embedded weights: what the files beside them say."""
    folder = REPOSITORY / "avalanche_clip" / "models" / "data"
    models = {
        (preset, tag): note
        for tag in TAGS
        for path in folder.glob(f"{tag}.json")
        for preset, note in sorted(json.loads(path.read_text("utf-8")).items())
    }
    names = [f"``{preset}``, ``{tag}``" for preset, tag in models]
    rows: list[tuple[object, ...]] = [("", *names)]
    sizes = [(folder / f"{p}-{t}.safetensors").stat().st_size for p, t in models]
    rows.append(("megabytes", *(f"{size / 1e6:.1f}" for size in sizes)))
    for label, key in SCORES.items():
        found = [note.get(key, "") for note in models.values()]
        rows.append((label, *(x[0] if isinstance(x, list) else x for x in found)))
    by_group = "later groups image_to_text_R@1"
    known = [note[by_group] for note in models.values() if by_group in note]
    yield from (".. list-table::", "   :header-rows: 1", "")
    yield from cells(rows)
    if known:
        yield "Zero-shot on later emoji, by group:"
        named = [n for n, note in zip(names, models.values()) if by_group in note]
        yield from ("", ".. list-table::", "   :header-rows: 1", "")
        groups = [(group, *(k[group] for k in known)) for group in known[0]]
        yield from cells([("group", *named), *groups])


def cells(rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    """Rows of a table."""
    for row in rows:
        yield from (
            f"   {'*' if i == 0 else ' '} - {c}".rstrip() for i, c in enumerate(row)
        )
    yield ""


def comment(marker: str) -> str:
    """A condition on the Python version, in words."""
    found = re.search(r'python_version (\S+) "(.*)"', marker)
    words = {"<": "older than", ">=": "from"}
    return f" (Python {words[found[1]]} {found[2]})" if found else ""
