"""An import rule that import-linter does not bring: these modules import what is named, and nothing else.

A list of what is forbidden grows with every dependency, and forgets the next one; a pure module knows what it needs.
"""

from __future__ import annotations

import sys

import grimp
from importlinter import Contract, ContractCheck, fields, output
from importlinter.domain.helpers import module_expressions_to_modules

STANDARD_LIBRARY = "the standard library"


class Only(Contract):
    """`may_import` holds packages, with all that is in them, and perhaps `the standard library`.

    The modules may import one another.
    """

    type_name = "only"

    modules = fields.ListField(subfield=fields.ModuleExpressionField())
    may_import = fields.ListField(subfield=fields.StringField())

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        named = module_expressions_to_modules(graph, self.modules, raise_if_unmatched=True)  # type: ignore[arg-type]
        importers = sorted(module.name for module in named)
        violations = [
            (importer, imported)
            for importer in importers
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if imported not in importers and not self._may_be_imported(imported)
        ]
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["violations"]:
            output.print_error(f"{importer} may not import {imported}")

    def _may_be_imported(self, imported: str) -> bool:
        allowed: list[str] = self.may_import  # type: ignore[assignment]
        if STANDARD_LIBRARY in allowed and imported in sys.stdlib_module_names:
            return True
        return imported == "__future__" or any(f"{imported}.".startswith(f"{package}.") for package in allowed)
