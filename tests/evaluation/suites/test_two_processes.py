"""Suites on two processes find what one finds; started once for all of them."""

from functools import partial

import pytest

from tests.evaluation.suites.test_blind_pairs import values_of_pairs
from tests.evaluation.suites.test_mirb import few_values
from tests.evaluation.suites.test_zero_shot import same, values_and_encoded
from tests.processes import run_in_processes


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    jobs = {"pairs": values_of_pairs, "zero-shot": partial(values_and_encoded, 0)}
    jobs["mirb"] = few_values
    return run_in_processes(jobs, tmp_path_factory.mktemp("processes"))


def test_two_processes__find_the_same_tasks(results):
    alone, _, encoded = values_and_encoded(0)
    for found, again, count in results["zero-shot"]:
        assert same(found, alone) and same(again, alone) and count == encoded


def test_two_processes__find_the_same_pairs(results):
    assert results["pairs"] == [values_of_pairs()] * 2


def test_two_processes__find_the_same_answers(results):
    assert results["mirb"] == [few_values()] * 2
