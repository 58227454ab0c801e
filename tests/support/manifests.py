"""The manifests of infra/kubernetes as a cluster would get them, and what is wrong with them.

`python -m tests.support.manifests` builds both overlays, and every component on its own, with each other one and with
all, and holds every object against the schemas of the oldest and the newest Kubernetes that are known here, strictly: a
field that does not exist is an error. Kinds that are not Kubernetes' own have small schemas beside this file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import yaml

PROJECT = Path(__file__).parents[2]
MANIFESTS = PROJECT / "infra" / "kubernetes"
OVERLAYS = ("kind", "production")
COMPONENTS = tuple(sorted(folder.name for folder in (MANIFESTS / "components").iterdir()))
VERSIONS = ("1.25", "1.37")
"""Of Kubernetes. The older one is the oldest that the validator knows."""

Object = dict[str, Any]

_PLAIN = (MANIFESTS / "base", MANIFESTS / "runs", PROJECT / "infra" / "argo")
_KUBECTL = Path(sys.executable).with_name("kubectl")
_CUSTOM_KINDS = {
    (schema["properties"]["apiVersion"]["const"], schema["properties"]["kind"]["const"]): schema
    for schema in (json.loads(file.read_text()) for file in (Path(__file__).parent / "custom_kinds").glob("*.json"))
}


@cache
def overlay(name: str) -> tuple[Object, ...]:
    """What `kubectl apply -k` would send of an overlay."""
    return _built(MANIFESTS / "overlays" / name)


@cache
def with_components(*names: str) -> tuple[Object, ...]:
    """The base, the rights and Argo's configuration, with these components and no overlay."""
    with tempfile.TemporaryDirectory() as folder:
        # Kustomize takes no absolute paths, and resolves links before it follows `..`.
        here = Path(folder).resolve()
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(each, here) for each in _PLAIN],
            "components": [os.path.relpath(MANIFESTS / "components" / name, here) for name in names],
        }
        (here / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _built(here)


def name_of(thing: Object) -> str:
    return f"{thing['kind']} {thing['metadata'].get('namespace', '')}/{thing['metadata']['name']}"


@cache
def _problem(text: str, version: str) -> str | None:
    import kubernetes_validate

    thing = json.loads(text)
    schema = _CUSTOM_KINDS.get((thing["apiVersion"], thing["kind"]))
    try:
        if schema is not None:
            jsonschema.validate(thing, schema)
        else:
            kubernetes_validate.validate(thing, version, strict=True)
    except jsonschema.ValidationError as error:
        return f"{name_of(thing)}: {'.'.join(map(str, error.absolute_path))}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return f"{name_of(thing)}: {error.message}"
    return None


def problems(things: Sequence[Object], version: str) -> list[str]:
    """What this version of Kubernetes would not take, in words."""
    found = [_problem(json.dumps(thing, sort_keys=True), version) for thing in things]
    names = [name_of(thing) for thing in things]
    doubles = [f"{name} is there twice" for name in set(names) if names.count(name) > 1]
    return [*filter(None, found), *doubles]


def combined() -> Iterator[tuple[str, tuple[Object, ...]]]:
    for name in OVERLAYS:
        yield f"overlay {name}", overlay(name)
    yield "no component", with_components()
    for count in (1, 2, len(COMPONENTS)):
        for names in combinations(COMPONENTS, count):
            yield f"with {', '.join(names)}", with_components(*names)


def main() -> int:
    told = set()
    count = objects = 0
    for title, things in combined():
        count += 1
        objects += len(things)
        for version in VERSIONS:
            for problem in problems(things, version):
                if (version, problem) not in told:
                    told.add((version, problem))
                    print(f"Kubernetes {version}, {title}: {problem}")
    if told:
        return 1
    print(
        f"Kubernetes {' and '.join(VERSIONS)}: {count} ways to put the manifests together, {objects} objects, all valid"
    )
    return 0


def _built(folder: Path) -> tuple[Object, ...]:
    done = subprocess.run([str(_KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0 or done.stderr:  # A warning is something that will not work much longer.
        raise AssertionError(f"kubectl kustomize {folder}: {done.stderr.strip()}")
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


if __name__ == "__main__":
    sys.exit(main())
