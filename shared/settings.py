"""Settings come from the environment, once, at the start of a process.

A settings struct is a frozen `msgspec.Struct`; the field `listen_port` of any struct is read from
`HEADRACE_LISTEN_PORT`. The unit ends the name (`_seconds`, `_bytes`). A value that does not fit is one clear
line and a non-zero exit, never a traceback.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct)


class SettingsError(Exception):
    """The environment does not describe a process that could run."""


def load(kind: type[S], environment: Mapping[str, str] | None = None) -> S:
    """Build `kind` from HEADRACE_… variables; absent ones take the field's default.

    Raises SettingsError, naming the variable, where one is missing or does not parse. Lists are comma separated.
    """
    environment = os.environ if environment is None else environment
    given: dict[str, object] = {}
    for field in msgspec.structs.fields(kind):
        variable = variable_of(field.name)
        text = environment.get(variable)
        if text is None:
            if field.required:
                raise SettingsError(f"{variable} is not set")
            continue
        is_list = getattr(field.type, "__origin__", field.type) in (list, tuple)
        raw: object = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        try:
            given[field.name] = msgspec.convert(raw, field.type, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{variable}={text!r}: {error}") from error
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:  # a rule over several fields
        raise SettingsError(str(error)) from error


def variable_of(field_name: str) -> str:
    return f"HEADRACE_{field_name.upper()}"
