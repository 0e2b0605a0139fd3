"""The experiment that a file of tests is about."""

import pytest

from tests.scripts import load_script
from tests.training.conftest import with_report, without_report  # noqa: F401


@pytest.fixture(scope="module")
def study(request):
    return load_script(f"experiments/{request.module.STUDY}.py")
