"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import dfa_client
import opu

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples():
    for package in (opu, dfa_client):
        found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        for name in (package.__name__, *(module.name for module in found)):
            for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
                if test.examples:
                    yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(examples()))
def test_an_example_prints_what_it_says(test):
    report = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
