"""The package root is lazy, and every name it offers exists."""

import json
import re
from importlib import import_module
from types import ModuleType

import pytest

import avalanche_clip
from avalanche_clip._exports import EXPORTS, SHOWN_BELOW, SUBPACKAGES, face_names
from tests.scripts import loaded_after, run_python

FACES = sorted({"", *SHOWN_BELOW, *(f for row in EXPORTS.values() for f in row)})

HEAVY = ("avalanche", "matplotlib", "numpy", "open_clip", "torch", "transformers")
HEAVY += ("timm", "torchvision", "wandb")
AVALANCHE_FREE = (
    "avalanche_clip.losses",
    "avalanche_clip.models",
    "avalanche_clip.evaluation.functional",
)


def test_root__loads_no_heavy_library():
    assert loaded_after("import avalanche_clip", HEAVY) == []


def test_root__imports_within_its_time_budget():
    code = (
        "import time\n"
        "start = time.perf_counter()\n"
        "import avalanche_clip\n"
        "print(time.perf_counter() - start)"
    )
    # The fastest of three: a busy machine can only slow an import down.
    assert min(float(run_python(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", FACES)
def test_face__shows_what_its_modules_define(name):
    face = import_module(f"avalanche_clip.{name}".rstrip("."))
    shown = face_names(name)
    assert set(shown) <= set(face.__all__) and set(shown) <= set(dir(face))
    for public, module in shown.items():
        value = getattr(face, public)
        assert value is vars(import_module(module))[public]
        assert not isinstance(value, ModuleType)


@pytest.fixture(scope="module")
def imports():
    """What one fresh interpreter has seen: importing the libraries takes longest."""
    heavy = {*HEAVY, "tokenizers"} - {"numpy", "torch"}
    code = f"""
import json, sys
import avalanche_clip
found = {{"names": {{}}, "early": [], "heavy": {{}}}}

def ask(name):
    found["early"] += [name] * (f"avalanche_clip.{{name}}" in sys.modules)
    found["names"][name] = getattr(avalanche_clip, name).__name__

for module in {AVALANCHE_FREE!r}:
    ask(module.split(".")[1])
    __import__(module)
    found["heavy"][module] = sorted({heavy!r} & {{*sys.modules}})
for name in ("budget", "checkpointing", "distributed", "training", "benchmarks"):
    ask(name)
import avalanche_clip.benchmarks.classic.tic_emoji
from avalanche_clip.benchmarks.classic import tic_emoji
found["tic_emoji"] = callable(tic_emoji)
print(json.dumps(found))
"""
    return json.loads(run_python(code))


@pytest.mark.parametrize("module", AVALANCHE_FREE)
def test_pure_subpackage__loads_neither_avalanche_nor_model_libraries(module, imports):
    assert imports["heavy"][module] == []


def test_face__of_classic_benchmarks_is_right_after_an_import_of_its_module(imports):
    assert imports["tic_emoji"]


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_subpackage__is_an_attribute_of_the_root(name, imports):
    assert name not in imports["early"]  # it is there because it is asked for
    assert imports["names"][name] == f"avalanche_clip.{name}"


def test_dir__lists_names_before_they_are_loaded():
    listed = run_python("import avalanche_clip; print(*dir(avalanche_clip))").split()
    assert set(face_names("")) | set(SUBPACKAGES) <= set(listed)


def test_all__holds_each_public_name_once():
    assert len(avalanche_clip.__all__) == len(set(avalanche_clip.__all__))
    assert set(avalanche_clip.__all__) == {"__version__", *face_names("")}


def test_unknown_name__raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = avalanche_clip.no_such_name


def test_version__is_that_of_the_installed_distribution():
    from importlib.metadata import version

    assert re.fullmatch(r"\d+\.\d+\.\d+", avalanche_clip.__version__)
    assert version("avalanche-clip") == avalanche_clip.__version__
