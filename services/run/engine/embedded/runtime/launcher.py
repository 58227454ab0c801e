#!/usr/bin/env python3
"""What stands in for the launcher of v2-compatible steps (specification §12), inside the step.

The engine puts this file where the step's command looks for its launcher, so it is a program of its own: the standard
library alone, and Python as old as images have it. It tells the user's command where everything is, and turns what the
command left into the files that the template declares. The artifacts themselves are brought and fetched by the engine,
which alone knows the object store; both sides find them by the functions here.

Nothing is recorded of executions beside the run's own nodes: there is no metadata store to tell.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

OUTPUT_FILE = "/tmp/kfp_outputs/output_metadata.json"  # noqa: S108 - the step's own /tmp
ROOT_FLAG = "artifact_root"
"""Beyond the original's flags: the URI below which this step's artifacts go, as the engine has decided."""

_LOCAL = {"gs": "gcs", "minio": "minio", "s3": "s3"}
"""Scheme of a URI → the folder in which a step sees it; SDKs know the same names."""
_VALUES = {"STRING": "stringValue", "INT": "intValue", "DOUBLE": "doubleValue"}
_PLACEHOLDER = re.compile(r"\{\{\$(?:\.(?:inputs|outputs)\.(?:parameters|artifacts)\['[^']*'\](?:\.\w+)?)?\}\}")


class Refused(Exception):
    """The step cannot go on; the text says why."""


@dataclass(frozen=True)
class Launch:
    """What the launcher of one step is told."""

    flags: Mapping[str, str]
    info: Mapping[str, Any]
    """`inputParameters`, `inputArtifacts`, `outputParameters` and `outputArtifacts`: name → description."""
    parameters: Mapping[str, str]
    command: Sequence[str]

    def described(self, what: str) -> Mapping[str, Mapping[str, Any]]:
        return self.info.get(what) or {}

    def output_uri(self, artifact: str) -> str:
        return self.flags.get(ROOT_FLAG, "") + "/" + artifact


def parse(arguments: Sequence[str]) -> Launch:
    """`--flag value …  -- name=value … -- command …`. Raises Refused."""
    if arguments.count("--") < 2:
        raise Refused("the launcher needs flags, inputs and a command, with -- between them")
    first = arguments.index("--")
    second = arguments.index("--", first + 1)
    flags = _flags(arguments[:first])
    try:
        info = json.loads(flags.get("runtime_info_json", ""))
        parameters = dict(each.split("=", 1) for each in arguments[first + 1 : second])
    except ValueError as error:
        raise Refused(f"what the launcher is told cannot be read: {error}") from error
    if not isinstance(info, dict):
        raise Refused("what the launcher is told cannot be read: runtime info is an object")
    if not arguments[second + 1 :]:
        raise Refused("the launcher has no command to run")
    return Launch(flags=flags, info=info, parameters=parameters, command=arguments[second + 1 :])


def _flags(words: Sequence[str]) -> dict[str, str]:
    flags = {}
    left = iter(words)
    for word in left:
        name, is_whole, value = word.lstrip("-").partition("=")
        flags[name] = value if is_whole else next(left, "")
    return flags


def local_path(uri: str) -> str | None:
    """Where a step sees the data of this URI; None for what cannot be brought."""
    scheme, _, rest = uri.partition("://")
    return f"/{_LOCAL[scheme]}/{rest}" if scheme in _LOCAL and rest else None


# The command.


def executor_input(launch: Launch, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `{{$}}` is, in the JSON of the protocol's messages. `records`: of the input artifacts. Raises Refused."""
    return {
        "inputs": {
            "parameters": {
                name: {_value_key(name, each): _json_value(name, each, launch)}
                for name, each in launch.described("inputParameters").items()
            },
            "artifacts": {
                name: {
                    "artifacts": [
                        {
                            "name": records[name].get("name", name),
                            "type": _type(each),
                            "uri": records[name].get("uri", ""),
                            "metadata": records[name].get("metadata") or {},
                        }
                    ]
                }
                for name, each in launch.described("inputArtifacts").items()
            },
        },
        "outputs": {
            "parameters": {
                name: {"outputFile": each["path"]} for name, each in launch.described("outputParameters").items()
            },
            "artifacts": {
                name: {
                    "artifacts": [
                        {"name": name, "type": _type(each), "uri": launch.output_uri(name), "metadata": {}},
                    ]
                }
                for name, each in launch.described("outputArtifacts").items()
            },
            "outputFile": OUTPUT_FILE,
        },
    }


def placeholders(told: Mapping[str, Any]) -> dict[str, str]:
    """What stands for what in the command, from the executor's input."""
    found = {"{{$}}": json.dumps(told, separators=(",", ":"))}
    for name, value in told["inputs"]["parameters"].items():
        found[f"{{{{$.inputs.parameters['{name}']}}}}"] = _plain(next(iter(value.values())))
    for name, file in told["outputs"]["parameters"].items():
        found[f"{{{{$.outputs.parameters['{name}'].output_file}}}}"] = file["outputFile"]
    for side in ("inputs", "outputs"):
        for name, listed in told[side]["artifacts"].items():
            uri = listed["artifacts"][0]["uri"]
            found[f"{{{{$.{side}.artifacts['{name}'].uri}}}}"] = uri
            path = local_path(uri)
            if path is not None:
                found[f"{{{{$.{side}.artifacts['{name}'].path}}}}"] = path
    return found


def filled(word: str, values: Mapping[str, str]) -> str:
    """Each placeholder once: what a value says is not looked into."""
    return _PLACEHOLDER.sub(lambda match: values.get(match.group(), match.group()), word)


def _value_key(name: str, described: Mapping[str, Any]) -> str:
    key = _VALUES.get(described.get("type", ""))
    if key is None:
        raise Refused(f"parameter {name} has the unknown type {described.get('type')!r}")
    return key


def _json_value(name: str, described: Mapping[str, Any], launch: Launch) -> str | float:
    """Integers of 64 bits are strings there."""
    text = launch.parameters.get(name, "")
    value = _number(name, described["type"], text)
    return str(value) if isinstance(value, int) else value


def _number(name: str, type_: str, text: str) -> str | int | float:
    try:
        return int(text) if type_ == "INT" else float(text) if type_ == "DOUBLE" else text
    except ValueError:
        raise Refused(f"parameter {name} is no {type_}: {text[:200]!r}") from None


def _plain(value: str | float) -> str:
    """Numbers without exponent, and without a fraction that says nothing."""
    if isinstance(value, str):
        return value
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _type(described: Mapping[str, Any]) -> dict[str, str]:
    return {key: described[key] for key in ("schemaTitle", "instanceSchema") if described.get(key)}


# What it left.


def take_in(launch: Launch, told: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Write the files that the template declares. `said`: what the command wrote to OUTPUT_FILE. Raises Refused."""
    parameters = launch.described("outputParameters")
    for name, value in (said.get("parameters") or {}).items():
        if name not in parameters:
            raise Refused(f"the step gives a parameter that it does not declare: {name}")
        _write(parameters[name]["path"], _plain(next(iter(value.values()))))
    for name, each in parameters.items():
        try:
            with open(each["path"], encoding="utf-8", errors="replace") as file:
                _number(name, each.get("type", ""), file.read().strip())
        except OSError as error:
            raise Refused(f"output parameter {name}: {each['path']}: {error.strerror}") from error
    for name, each in launch.described("outputArtifacts").items():
        record = dict(told["outputs"]["artifacts"][name]["artifacts"][0])
        for changed in ((said.get("artifacts") or {}).get(name) or {}).get("artifacts", [])[:1]:
            record["uri"] = changed.get("uri") or record["uri"]
            record["metadata"] = {**record["metadata"], **(changed.get("metadata") or {})}
        _write(each["metadataPath"], json.dumps(record))


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


# The program.


def main(arguments: Sequence[str]) -> int:
    """The exit code of the step."""
    try:
        launch = parse(arguments)
        records = {name: _read(each["metadataPath"]) for name, each in launch.described("inputArtifacts").items()}
        told = executor_input(launch, records)
        _say_where(launch)
        _make_room(launch)
        values = placeholders(told)
        code = _run([filled(word, values) for word in launch.command])
        if code == 0:
            take_in(launch, told, _read(OUTPUT_FILE) if os.path.exists(OUTPUT_FILE) else {})
        return code
    except Refused as refused:
        _say(str(refused))
        return 1


def _say_where(launch: Launch) -> None:
    wanted = launch.flags.get("pipeline_root", "")
    if wanted and not launch.output_uri("").startswith(wanted) and launch.described("outputArtifacts"):
        where = launch.flags.get(ROOT_FLAG)
        _say(f"nothing can be stored at {wanted} from here; artifacts go to {where}")


def _make_room(launch: Launch) -> None:
    files = [each["path"] for each in launch.described("outputParameters").values()]
    files += [local_path(launch.output_uri(name)) or "" for name in launch.described("outputArtifacts")]
    for file in (*files, OUTPUT_FILE):
        os.makedirs(os.path.dirname(file) or "/", exist_ok=True)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise Refused(f"{path} holds no object")
    return found


def _run(command: Sequence[str]) -> int:
    """Its exit code, 128+s when a signal s ended it. Who asks us to stop asks it."""
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        _say(f"{command[0]}: {error.strerror}")
        return 127 if isinstance(error, FileNotFoundError) else 126
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    code = process.wait()
    return code if code >= 0 else 128 - code


def _say(text: str) -> None:
    sys.stderr.write(f"launcher: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
