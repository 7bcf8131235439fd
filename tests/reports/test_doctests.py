"""The examples in docstrings."""

import doctest
from importlib import import_module

import pytest

MODULES = (
    *("thesis.experiments", "thesis.numbers", "reading.run", "tables.notes"),
    *("figures.plans", "figures.style", "figures.training", "claims.training"),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    found = doctest.testmod(import_module(f"bnlab.reports.{name}"))
    assert found.attempted > 0
    assert found.failed == 0
