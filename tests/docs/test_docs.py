"""The documentation is whole: pages, names, code and numbers of versions."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch

from avalanche_clip import benchmarks, models, training
from avalanche_clip._exports import ROOT, face_names
from avalanche_clip.training import plugins, supervised
from tests.forks import run_script

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
GUIDES = (
    *(
        "your_data.rst",
        "next_step.rst",
        "archives.rst",
        "weights.rst",
        "use_a_model.rst",
        "branches.rst",
        "write_a_method.rst",
    ),
    *("command_line.rst", "suites.rst"),
    *("mirb.rst", "blind_pairs.rst"),
    "tic_clip.rst",
    "cost.rst",
)
# The comment is invisible on the page and marks the block that follows it.
MARK = "<!-- tested example -->"
EXAMPLE = re.compile(re.escape(MARK) + r"\s*```python\n(.*?)^```", re.DOTALL | re.M)
FEW_DRAWINGS = """
from avalanche_clip import benchmarks as _b
from avalanche_clip.benchmarks.items import scenario as _s

def _few(whole=_b.tic_emoji):
    stream = whole()
    few = {
        name: [_s.clone_experience(e, e.dataset.subset(range(90))) for e in found]
        for name, found in stream.streams.items()
    }
    return _s.make_scenario(few, stream)

_whole, _b.tic_emoji = _b.tic_emoji, _few
"""
"""The example in the README evaluates all emoji seven times."""
PRINTED = "\n".join(
    [
        r"\[\[.*\](?:\n \[.*\]){5}\]",  # of the README, six time steps
        r"\{'average': .*\}",
        r"\[2, 2, 2\]",
        r"\['a red square', 'a square'\] \['2016', '2017'\]\n6\n3\n3",
        r"59 \['face smiling', 'face affection'\]",
        r"4 00000003 square 3 \{\}",
        "968 icons beside the stream",
        r"\d+ numbers to train",
        "2 steps near the previous model",
        r"tiny-emoji:emoji-2010  zero-shot  emoji-2020-2024  acc1  1.8 \(.+\)",
        r"\['cars'\]",
        "base emoji-2014 acc1 139",
        r"24 questions, chance 0\.5",
        r"\d+ pairs look the same",
        r"0\.4\d\d? tell them by name",
        r"\['0', '2', '3', '5'\]",
        r"\{'0': \{'train': 2, 'test': 1\}, .*\}",
        r"\['2008', '2010', '2012', '2014'\]",
        r"photo 0\. seen in 2008\. ",
        r"sequential 7\.0 2\.65e\+19 MACs",
        r"cumulative-all-star 10\.5 3\.98e\+19 MACs",
        r"oracle 28\.0 1\.06e\+20 MACs",
        "ViT-B-16 256 22500",
        r"\{'images': 40, 'texts': 40, 'steps': 0\}",
    ]
)
CODE = re.compile(
    r"^\.\. code-block:: python\n(?:   :name: (\S+)\n)?\n((?:   .*\n|\n)+)", re.M
)
METHODS = sorted((DOCS / "methods").glob("[!i]*.rst"))


def blocks(page: str) -> dict[str, str]:
    """Name -> code of the blocks of a page that have a name."""
    text = (DOCS / page).read_text(encoding="utf-8") + "\n"
    return {
        name: textwrap.dedent(code).strip() + "\n"
        for name, code in CODE.findall(text)
        if name
    }


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference__has_every_public_name_once(pages):
    shown = [name for names in pages.shown().values() for name, _ in names]
    assert len(set(shown)) == len(shown)
    public = {name for face in pages.FACES for name in face_names(face)}
    assert public <= set(shown)


def test_reference__made_pages_name_modules_that_define_them(pages):
    text = "\n".join(pages.reference("losses", sorted(pages.shown()["losses"])))
    assert (
        ".. autofunction:: avalanche_clip.losses.contrastive.contrastive_loss" in text
    )
    support = "\n".join(pages.support())
    assert "avalanche-lib" in support and ">=3.10" in support


def test_scores__are_those_of_the_files_beside_the_weights(pages):
    text = "\n".join(pages.scores())
    folder = DOCS.parent / "avalanche_clip" / "models" / "data"
    for tag in pages.TAGS:
        for preset, note in json.loads((folder / f"{tag}.json").read_text()).items():
            assert f"``{preset}``, ``{tag}``" in text
            for key in pages.SCORES.values():
                value = note.get(key, "")
                shown = value[0] if isinstance(value, list) else value
                ends = f" - {shown}".rstrip()
                assert any(line.endswith(ends) for line in text.splitlines())


def test_methods__each_strategy_and_plugin_is_on_a_page():
    text = "".join(p.read_text("utf-8") for p in (DOCS / "methods").glob("*.rst"))
    # These help a run, and are no methods.
    others = {"CheckpointPlugin", "ProgressPlugin", "FrozenLogitScalePlugin"}
    for face in ("training.supervised", "training.plugins"):
        for name in face_names(face):
            if name[0].isupper() and not name.isupper() and name not in others:
                assert "_" in name or f"``{name}``" in text, name


@pytest.mark.parametrize("page", METHODS, ids=lambda p: p.stem)
def test_methods__page_names_paper_cost_and_what_it_does_not_go_with(page):
    head = re.findall(r"^:([\w ]+): \S", page.read_text(encoding="utf-8"), re.M)
    assert head == ["Strategy or plugin", "Paper", "Status", "Cost", "Not with"]


@pytest.mark.parametrize("page", METHODS, ids=lambda p: p.stem)
def test_methods__settings_are_arguments_of_what_the_page_names(page):
    text = page.read_text(encoding="utf-8")
    names = re.findall("``(\\w+)``", text.split(":Paper:")[0])
    named = {n: plugins if n in plugins.__all__ else supervised for n in names}
    taken = {
        argument
        for name in names
        for cls in getattr(named[name], name).__mro__
        for argument in inspect.signature(cls.__init__).parameters
    }
    settings = re.search(
        "^Settings\n-+\n(.*?)^(?:Results|\\.\\. code)", text, re.S | re.M
    )
    rows = re.findall(r"^   \* - (``.+)$", settings[1] if settings else "", re.M)
    given = {name for row in rows for name in re.findall("``(\\w+)``", row)}
    assert given <= taken, given - taken


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", METHODS, ids=lambda p: p.stem)
def test_methods__examples_train(page):
    faces = (benchmarks, models, training, plugins)
    public = {name: getattr(face, name) for face in faces for name in face.__all__}
    codes = CODE.findall(page.read_text(encoding="utf-8") + "\n")
    assert codes
    for _, code in codes:
        model = models.create_dual_encoder("tiny-emoji-vit", "emoji-2010")
        stream = benchmarks.tic_emoji(first_step=1)  # begins with few emoji
        names = {
            **public,
            "model": model,
            "benchmark": benchmarks.prepare_benchmark(stream, model),
            "optimizer": partial(torch.optim.AdamW, lr=1e-4),
            "images": benchmarks.emoji_dataset(["noto"], range(64)),
            "sentences": ["a cat", "a tree", "the sun"],
            "run_stream": lambda *given, **options: None,
        }
        exec(textwrap.dedent(code), names)
        strategy = names["strategy"]
        strategy.compute.iterations = strategy.train_epochs
        strategy.warmup_iterations = strategy.later_warmup_iterations = 0
        if page.stem != "moe_adapters":  # the selector takes 1,300 iterations
            strategy.train(names["benchmark"].train_stream[0])


@pytest.mark.parametrize("page", sorted(DOCS.glob("**/*.rst")), ids=lambda p: p.stem)
def test_pages__python_code_is_python(page):
    for _, code in CODE.findall(page.read_text(encoding="utf-8") + "\n"):
        compile(textwrap.dedent(code), str(page), "exec")


def test_quickstart__is_the_example_of_the_readme():
    (code,) = blocks("quickstart.rst").values()
    example = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)[1]

    def calls(text: str) -> list[str]:
        return [line for line in text.splitlines() if "(" in line or "=" in line]

    bare = [re.sub(r"\s*#.*", "", line) for line in calls(code)]
    theirs = {re.sub(r"\s*#.*", "", line) for line in calls(example)}
    assert [line for line in bare if line not in theirs] == [
        'result = run_stream(strategy, benchmark, "runs/quickstart")'
    ]


def test_readme__has_one_marked_example():
    text = README.read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    assert len(EXAMPLE.findall(text)) == 1


def test_readme_and_guides__run_as_printed_in_an_empty_directory(tmp_path):
    # In one process, which has imported the libraries: that takes longest.
    (example,) = EXAMPLE.findall(README.read_text(encoding="utf-8"))
    guides = [c for page in GUIDES for c in blocks(page).values()]
    code = [FEW_DRAWINGS, example, "_b.tic_emoji = _whole", *guides]
    # A file, since examples may start worker processes, which import it again.
    script = tmp_path / "example.py"
    script.write_text("\n".join(code), encoding="utf-8")
    code, printed, complaints = run_script(script.name, tmp_path)
    assert code == 0, complaints[-4000:]
    # The example's own logger prints before.
    assert re.search(rf"(?:\A|\n){PRINTED}\Z", printed.strip())
    assert (tmp_path / "runs" / "readme" / "report.html").exists()


def test_migration__names_modules_that_are_there():
    rows = re.findall(
        r"\* - ``(.+)``\n     - ``(.+)``", (DOCS / "migration.rst").read_text("utf-8")
    )
    assert len(rows) > 50
    for former, now in rows:
        # A module may be folded into another one of its room.
        room = now.rpartition(".")[0] or now
        assert importlib.util.find_spec(f"{ROOT}.{room}"), now
        assert former != now


def test_readme__is_short_and_its_links_are_there():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (README.parent / target).exists(), target


def test_pictures__are_small():
    assert all(p.stat().st_size < 100_000 for p in DOCS.glob("images/*"))


@pytest.mark.slow
def test_documentation__builds_without_warnings(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", DOCS, tmp_path],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
