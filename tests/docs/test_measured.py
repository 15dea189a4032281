"""The page of what was measured says what the result files say."""

import json

import pytest

from benchmarks.calibration.page import PAGE, RESULTS, page, result

# Seeds of development, and those of earlier results that led to changes.
LOOKED_AT = {*range(100), *range(1000, 1010), *range(2000, 2200)}


def test_the_page_is_made_of_the_result_files():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_case_has_a_result():
    cases = {case.partition("-")[0] for name in RESULTS for case in result(name)["cases"]}
    assert cases == {f"C{number}" for number in range(1, 23)}


@pytest.mark.parametrize("name", [*RESULTS, "coverage", "faulty_benches", "retrieval"])
def test_results_are_of_seeds_that_nobody_had_looked_at(name):
    found = result(name)
    seeds = found["seeds"] if "seeds" in found else [bench["seed"] for bench in found["benches"]]
    assert seeds
    assert not set(seeds) & LOOKED_AT, json.dumps(seeds)
