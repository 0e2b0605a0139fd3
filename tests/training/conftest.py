"""Runs without their report, unless it is what a test looks at."""

import pytest


@pytest.fixture
def with_report():
    """Ask for it where a whole run must write its report."""


@pytest.fixture(autouse=True)
def without_report(request, monkeypatch):
    """Plots take longer than a small run."""
    if "with_report" not in request.fixturenames:
        name = "avalanche_clip.training.runs.stream.write_report"
        monkeypatch.setattr(name, lambda folder: None)
