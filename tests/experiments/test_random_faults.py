"""The experiment that breaks runs: its faults, its table, and twenty of them."""

import random
import subprocess
import sys

import pytest

from tests.scripts import ROOT

STUDY = "random_faults"


def test_damage__changes_a_file_in_every_way(study, tmp_path):
    draw, path, ways = random.Random(0), tmp_path / "a.tar", set()
    for sums in (True, False):
        for _ in range(40):
            path.write_bytes(bytes(range(1, 256)) * 20)
            ways.add((study.damage(path, draw, sums).split()[0], sums))
            assert path.read_bytes() != bytes(range(1, 256)) * 20
    assert len(ways) == 7 and ("zeros", False) not in ways


def test_words__are_there_for_each_kind(study):
    for kind in study.KINDS:
        assert kind == "kill all" or any(key in kind for key in study.WORDS), kind


def row(kind, same=True, hang=False, named=True):
    return {"kind": kind, "same": same, "hang": hang, "named": named, "seconds": 1.0}


def test_summary__counts_what_is_wrong(study):
    good = [row("kill one"), row("archive", named=None)]
    text, well = study.summary(good)
    assert well and text.splitlines()[-3].split() == ["all", "2", "0", "0", "1", "0"]
    for bad in ({"same": False}, {"hang": True}, {"named": False}):
        assert not study.summary([*good, row("full disk", **bad)])[1]


@pytest.mark.slow
def test_twenty_faults__give_no_wrong_result_and_no_hang(tmp_path):
    script = ROOT / "experiments" / "random_faults.py"
    options = ["--out", str(tmp_path), "--faults", "20", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
