"""The page of what was measured says what the result files say."""

import json

import pytest

from benchmarks.calibration.page import PAGE, RESULTS, page, result

TUNED = range(100)


def test_the_page_is_made_of_the_result_files():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_case_has_a_result():
    cases = {case.partition("-")[0] for name in RESULTS for case in result(name)["cases"]}
    assert cases == {f"C{number}" for number in range(1, 23)}


@pytest.mark.parametrize("name", [*RESULTS, "coverage", "faulty_benches"])
def test_results_are_of_seeds_that_nothing_was_tuned_on(name):
    found = result(name)
    seeds = found["seeds"] if "seeds" in found else [bench["seed"] for bench in found["benches"]]
    assert seeds
    assert not set(seeds) & set(TUNED), json.dumps(seeds)
