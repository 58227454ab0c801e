"""Whether the description of the events is one: `python -m tests.support.asyncapi` says so, or what is wrong."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import msgspec
from jsonschema import Draft7Validator
from referencing import Registry
from referencing.jsonschema import DRAFT7

with warnings.catch_warnings():
    # Two of its fields have names that its own base class uses, too.
    warnings.simplefilter("ignore", UserWarning)
    from asyncapi3.models import AsyncAPI3

from shared import asyncapi

_URI = "urn:asyncapi"


class Described:
    """The document as others read it. Raises ValueError where it is none, or where it refers to what is not there."""

    def __init__(self, document: Any) -> None:
        # Structs and tuples are not what others read.
        self.document = msgspec.json.decode(msgspec.json.encode(document))
        AsyncAPI3.model_validate(self.document)
        for reference in _references(self.document):
            self._follow(reference)
        for schema in self.document["components"]["schemas"].values():
            Draft7Validator.check_schema(schema)
        whole = DRAFT7.create_resource(self.document)
        self._registry: Registry[Any] = Registry().with_resource(_URI, whole)

    def check(self, schema: str, value: Any) -> None:
        """Hold a value against what a pointer into the document leads to. Raises jsonschema's ValidationError."""
        Draft7Validator({"$ref": f"{_URI}{schema}"}, registry=self._registry).validate(value)

    def _follow(self, reference: str) -> None:
        place = self.document
        for name in reference.removeprefix("#/").split("/"):
            if name not in place:
                raise ValueError(f"{reference} leads nowhere")
            place = place[name]


def _references(within: Any) -> Iterator[str]:
    if isinstance(within, dict):
        if isinstance(reference := within.get("$ref"), str):
            yield reference
        within = list(within.values())
    if isinstance(within, list):
        for each in within:
            yield from _references(each)


if __name__ == "__main__":
    try:
        Described(asyncapi.document())
    except ValueError as error:
        sys.exit(f"asyncapi: {error}")
