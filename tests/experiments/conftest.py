"""The experiment that a file of tests is about."""

import pytest

from tests.scripts import load_script


@pytest.fixture(scope="module")
def study(request):
    return load_script(f"experiments/{request.module.STUDY}.py")
