"""The structure of MATLAB files, before scipy reads them."""

import random

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from avalanche_clip.benchmarks.datasets.mtil.mat_files import check_mat
from tests.benchmarks.datasets.mtil import disk
from tests.refused import refused

CONTENT = {
    "numbers": np.arange(6.0).reshape(2, 3),
    "complex": np.array([1 + 2j]),
    "flags": np.array([True, False]),
    "text": "zwölf",
    "empty": np.empty((0, 2)),
    "cells": np.array(["a", np.arange(3), []], dtype=object),
    "nested": {"name": "x", "inner": {"value": 3}},
}


@pytest.mark.parametrize("packed", [True, False])
def test_whole_files__pass(tmp_path, packed):
    path = tmp_path / "x.mat"
    savemat(path, CONTENT, do_compression=packed)
    check_mat(path)
    disk.flowers(tmp_path)
    disk.cars(tmp_path)
    for found in tmp_path.rglob("*.mat"):
        check_mat(found)


@pytest.mark.parametrize("packed", [True, False])
def test_damaged_files__are_refused_or_read_by_scipy(tmp_path, packed):
    """scipy alone ends the process on some of these."""
    path = tmp_path / "x.mat"
    savemat(path, CONTENT, do_compression=packed)
    whole, chance = path.read_bytes(), random.Random(3)
    refused = 0
    for number in range(300):
        changed = bytearray(whole)
        if number < 20:
            changed = changed[: chance.randrange(len(whole))]
        else:
            changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            check_mat(path)
        except ValueError as error:
            assert "x.mat is not a whole MATLAB 5 file" in str(error)
            refused += 1
            continue
        try:
            loadmat(path)
        # What scipy cannot read, torchvision's reader reports.
        except Exception:
            pass
    assert refused > 30


def test_swelling_files__are_refused(tmp_path):
    path = tmp_path / "x.mat"
    savemat(path, {"zeros": np.zeros((90, 2**17))}, do_compression=True)
    refused("x.mat.*unpack to more than", check_mat, path)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(200), b"<html>"])
def test_other_files__are_named(tmp_path, content):
    path = tmp_path / "x.mat"
    path.write_bytes(content)
    refused("x.mat is not a whole MATLAB 5 file", check_mat, path)
    refused("y.mat", check_mat, tmp_path / "y.mat", error=FileNotFoundError)


def test_versions__of_older_matlab_are_refused(tmp_path):
    path = tmp_path / "x.mat"
    savemat(path, {"a": np.ones(3)}, format="4")
    refused("x.mat", check_mat, path)
