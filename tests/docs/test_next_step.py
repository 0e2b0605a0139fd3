"""The script of the page on the next time step does what the page says."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import open_clip
import pytest
import torch

from avalanche_clip import create_dual_encoder
from avalanche_clip.common.files import read_json
from tests.forks import run_script

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PICTURES = 16


def run(folder, *command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def matrix(folder):
    found = read_json(folder / "results.json", dict, checksum=True)
    return np.array(found["matrices"]["test"]["mean_R@1"]["E"], dtype=float)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("next_step")
    command = ["write_pictures.py", str(folder / "pictures"), str(PICTURES)]
    with mock.patch.object(sys, "argv", command):
        runpy.run_path(str(EXAMPLES / command[0]))
    script = EXAMPLES / "next_step.py"
    code, said, complaints = run_script(script, folder, "pictures", "out", 1)
    assert code == 0, complaints[-4000:]
    return folder, said


def test_script__has_at_most_forty_lines():
    assert len((EXAMPLES / "next_step.py").read_text("utf-8").splitlines()) <= 40


def test_run__is_extended_and_compared(place):
    folder, said = place
    E = matrix(folder / "out" / "stream")
    assert E.shape == (3, 3) and not np.isnan(E[1:]).any()
    assert matrix(folder / "out" / "joint").shape == (1, 3)
    page = (folder / "out" / "comparison.html").read_text("utf-8")
    assert "CumulativeAll" in page and "Joint" in page
    assert "comparison.html" in said
    rows = ast.literal_eval(re.search(r"tensor\((\[\[.*\]\])\)", said, re.S)[1])
    assert np.shape(rows) == (3, 3)
    assert np.allclose(np.sum(rows, axis=1), 1, atol=0.02)


def test_model__is_that_of_the_folder_and_of_open_clip(place):
    folder, _ = place
    own = create_dual_encoder(folder / "out" / "stream" / "model").eval()
    kept = create_dual_encoder(folder / "out" / "stream", step=2)
    assert own.state_fingerprint() == kept.state_fingerprint()
    name = f"local-dir:{folder / 'out' / 'open_clip'}"
    theirs, _ = open_clip.create_model_from_pretrained(name)
    images = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    ids = open_clip.get_tokenizer(name)(["a snowman", "pizza"])
    with torch.no_grad():
        assert torch.allclose(
            own.encode_image(images), theirs.encode_image(images, True), atol=1e-5
        )
        assert torch.allclose(
            own.encode_text(ids), theirs.encode_text(ids, True), atol=1e-5
        )


@pytest.mark.slow
def test_two_processes__give_what_one_gives(place, tmp_path):
    folder, said = place
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    found = run(tmp_path, *command, EXAMPLES / "next_step.py", "pictures", "out", 1)
    for name in ("stream", "joint"):
        one, two = (matrix(place / "out" / name) for place in (folder, tmp_path))
        assert np.allclose(one, two, atol=1e-6, equal_nan=True)
    assert found.count("comparison.html") == 1
