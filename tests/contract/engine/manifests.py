"""Small workflows in few words, as plain JSON.

`c` is a container that runs a shell script, `dag` and `steps` are groups, `task` is a member of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

CLAIM = {"name": "v", "persistentVolumeClaim": {"claimName": "{{workflow.name}}"}}


def workflow(entry: Json, *, templates: Mapping[str, Json] | None = None, **spec: Any) -> Json:
    """`entry` is the template `main`; the others go by their names."""
    named = {"main": entry, **(templates or {})}
    return {
        "spec": {
            "entrypoint": "main",
            "templates": [{"name": name, **template} for name, template in named.items()],
            **spec,
        }
    }


def c(
    script: str,
    *,
    takes: Sequence[str] = (),
    gives: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
    leaves: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Json:
    """Input parameters, output parameters (name → path), input artifacts and output artifacts (name → path).

    Instead of a path there may be a mapping with everything there is to say.
    """
    return {
        "container": {"image": "any", "command": ["sh", "-c"], "args": [script]},
        "inputs": {"parameters": [{"name": each} for each in takes], "artifacts": _artifacts(files)},
        "outputs": {
            "parameters": [
                {"name": name, "valueFrom": {"path": given} if isinstance(given, str) else given}
                for name, given in (gives or {}).items()
            ],
            "artifacts": _artifacts(leaves),
        },
        **rest,
    }


def on_claim(script: str, **rest: Any) -> Json:
    """A container with the run's own claim at /v."""
    template = c(script, **rest)
    template["container"]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    return {**template, "volumes": [CLAIM]}


def dag(*tasks: Json, takes: Sequence[str] = (), outputs: Json | None = None, **rest: Any) -> Json:
    inputs = {"parameters": [{"name": each} for each in takes]}
    return {"inputs": inputs, "outputs": outputs or {}, "dag": {"tasks": list(tasks)}, **rest}


def steps(*groups: list[Json], **rest: Any) -> Json:
    return {"steps": list(groups), **rest}


def task(
    name: str, template: str, *after: str, given: Mapping[str, Any] | None = None, files: Any = None, **rest: Any
) -> Json:
    """`given`: parameters; `files`: artifacts (name → its `from`, or a mapping)."""
    parameters = [{"name": key, "value": value} for key, value in (given or {}).items()]
    artifacts = [
        {"name": key, **({"from": value} if isinstance(value, str) else value)} for key, value in (files or {}).items()
    ]
    made = {"name": name, "template": template, "arguments": {"parameters": parameters, "artifacts": artifacts}, **rest}
    return {**made, "dependencies": list(after)} if after else made


def of(name: str, parameter: str = "o") -> str:
    return f"{{{{tasks.{name}.outputs.parameters.{parameter}}}}}"


def file_of(name: str, artifact: str = "a") -> str:
    return f"{{{{tasks.{name}.outputs.artifacts.{artifact}}}}}"


def given(name: str) -> str:
    return f"{{{{inputs.parameters.{name}}}}}"


def _artifacts(described: Mapping[str, Any] | None) -> list[Json]:
    return [
        {"name": name, **({"path": each} if isinstance(each, str) else each)}
        for name, each in (described or {}).items()
    ]
