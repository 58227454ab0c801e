from __future__ import annotations

import grimp
import pytest

from tests.support.only_contract import Only


@pytest.mark.parametrize("imported", ["json", "__future__", "msgspec", "mill.wheel", "river.bank.reeds", "mill.race"])
def test_what_is_named_and_one_another_may_be_imported(imported: str) -> None:
    assert _violations("mill.race", imported) == []


@pytest.mark.parametrize("imported", ["uvicorn", "msgspecs", "river", "river.banks", "mill"])
def test_anything_else_may_not(imported: str) -> None:
    assert _violations("mill.race", imported) == [("mill.race", imported)]


def test_a_module_that_is_not_there_is_no_module_that_keeps_the_rule() -> None:
    with pytest.raises(ValueError, match="does not exist"):
        _contract("mill.sluice").check(grimp.ImportGraph(), verbose=False)


def _violations(importer: str, imported: str) -> list[tuple[str, str]]:
    graph = grimp.ImportGraph()
    for module in ("mill.race", "mill.wheel"):
        graph.add_module(module)
    graph.add_import(importer=importer, imported=imported)
    check = _contract("mill.race", "mill.wheel").check(graph, verbose=False)
    violations: list[tuple[str, str]] = check.metadata["violations"]
    assert check.kept == (not violations)
    return violations


def _contract(*modules: str) -> Only:
    may_import = ["the standard library", "msgspec", "river.bank"]
    return Only("only", {}, {"modules": list(modules), "may_import": may_import})
