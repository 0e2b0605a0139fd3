"""Data sets on disk that several files of tests read."""

import pytest

from tests.benchmarks.datasets.mtil import coop_files, disk


@pytest.fixture
def any_checksum(monkeypatch):
    """Files of the tests pass for the originals."""
    disk.accept_any_checksum(monkeypatch)


@pytest.fixture(scope="session")
def x_root(tmp_path_factory):
    """All data sets of X-TAIL below one folder."""
    folder = tmp_path_factory.mktemp("x_tail")
    coop_files.write_x_tail(folder)
    return folder
