"""What no arguments and no engine could make runnable (workflow engine specification, section 13).

Names, what they refer to, and the shape of templates. A workflow without an entrypoint and arguments without a value
pass: whoever runs it may bring both. Which features an engine has, and what its variables are called, is decided where
a run is created.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from shared.errors import InvalidInput

from .domain import unparsable
from .shapes import Document, mapping, mappings, sequence, text

_KINDS: Final = ("container", "script", "resource", "dag", "steps", "suspend")
_OTHER_KINDS: Final = ("containerSet", "data", "http", "plugin")
_LOOPS: Final = ("withItems", "withParam", "withSequence")

_SHORT_NAME = re.compile(r"[-a-zA-Z0-9_]+")
_SHORT_NAME_RULE: Final = "name must consist of alpha-numeric characters, '_' or '-'"
_LONG_NAME = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9]{0,127}")
_LONG_NAME_RULE: Final = (
    "name must consist of alpha-numeric characters or '-', and must start with an alpha-numeric character"
)
_IN_DEPENDS = re.compile(r"([-a-zA-Z0-9_]+)(?:\.[a-zA-Z]+)?")
"""A task and, perhaps, how it ended."""


def lint(document: Document) -> None:
    """Raises InvalidInput, in words that name the template and the task."""
    spec = mapping(document, "spec", "spec")
    _check_values("spec.arguments", mapping(spec, "arguments", "spec.arguments"))
    templates = _named(mappings(spec, "templates", "spec.templates"), "templates")
    for role in ("entrypoint", "onExit"):
        name = text(spec, role, f"spec.{role}")
        if name and name not in templates and not spec.get("workflowTemplateRef"):
            raise InvalidInput(f"template name '{name}' undefined")
    for name, template in templates.items():
        _check_template(f"templates.{name}", template, templates)


def _check_template(place: str, template: Document, templates: Mapping[str, Document]) -> None:
    _check_values(f"{place}.inputs", mapping(template, "inputs", f"{place}.inputs"))
    _check_values(f"{place}.outputs", mapping(template, "outputs", f"{place}.outputs"))
    kinds = [kind for kind in (*_KINDS, *_OTHER_KINDS) if template.get(kind) is not None]
    match kinds:
        case [] if template.get("templateRef") or template.get("template"):
            return
        case []:
            raise InvalidInput(f"{place} template type unspecified. choose one of: {', '.join(_KINDS)}")
        case ["container" | "script" as kind]:
            if not text(mapping(template, kind, f"{place}.{kind}"), "image", f"{place}.{kind}.image"):
                raise InvalidInput(f"{place}.{kind}.image may not be empty")
        case ["dag"]:
            _check_dag(place, mapping(template, "dag", f"{place}.dag"), templates)
        case ["steps"]:
            _check_steps(place, template, templates)
        case [_]:
            return
        case _:
            raise InvalidInput(f"{place} multiple template types specified. choose one of: {', '.join(kinds)}")


def _check_dag(place: str, dag: Document, templates: Mapping[str, Document]) -> None:
    tasks = _named(mappings(dag, "tasks", f"{place}.dag.tasks"), f"{place}.tasks")
    if not tasks:
        raise InvalidInput(f"{place} must have at least one task")
    for name, task in tasks.items():
        _check_task(f"{place}.tasks.{name}", task, templates)
    _check_acyclic(place, _needs(place, tasks))


def _needs(place: str, tasks: Mapping[str, Document]) -> dict[str, list[str]]:
    """Which tasks each one waits for."""
    uses_depends = any(task.get("depends") for task in tasks.values())
    needs: dict[str, list[str]] = {}
    for name, task in tasks.items():
        where = f"{place}.tasks.{name}"
        listed = sequence(task, "dependencies", f"{where}.dependencies")
        if uses_depends and listed:
            raise InvalidInput(f"{place} cannot use both 'depends' and 'dependencies' in the same DAG template")
        needs[name] = [*listed, *_IN_DEPENDS.findall(text(task, "depends", f"{where}.depends"))]
        for other in needs[name]:
            if not isinstance(other, str):
                raise unparsable(f"{where}.dependencies must be texts")
            if other not in tasks:
                raise InvalidInput(f"{where} dependency '{other}' not defined")
    return needs


def _check_acyclic(place: str, needs: Mapping[str, Iterable[str]]) -> None:
    """Depth first, without recursion: a chain of tasks may be long."""
    done: set[str] = set()
    for start in needs:
        path: dict[str, Iterator[str]] = {} if start in done else {start: iter(needs[start])}
        while path:
            name = next(reversed(path))
            following = next((each for each in path[name] if each not in done), None)
            if following is None:
                path.popitem()
                done.add(name)
            elif following in path:
                names = list(path)
                cycle = [*names[names.index(following) :], following]
                raise InvalidInput(f"{place} dependency cycle detected: {'->'.join(cycle)}")
            else:
                path[following] = iter(needs[following])


def _check_steps(place: str, template: Document, templates: Mapping[str, Document]) -> None:
    groups = sequence(template, "steps", f"{place}.steps")
    if not groups:
        raise InvalidInput(f"{place} must have at least one step")
    steps: list[tuple[str, Document]] = []
    for index, group in enumerate(groups):
        # A group may be written as the list alone, or as a mapping that holds it.
        given: Any = group if isinstance(group, dict) else {"steps": group}
        found = list(mappings(given, "steps", f"{place}.steps[{index}]"))
        if not found:
            raise InvalidInput(f"{place}.steps[{index}] must have at least one step")
        steps.extend(found)
    for name, step in _named(steps, f"{place}.steps").items():
        _check_task(f"{place}.steps.{name}", step, templates)


def _check_task(where: str, task: Document, templates: Mapping[str, Document]) -> None:
    """A task of a DAG, or a step."""
    arguments = mapping(task, "arguments", f"{where}.arguments")
    _check_values(f"{where}.arguments", arguments)
    loops = [loop for loop in _LOOPS if task.get(loop) is not None]
    if len(loops) > 1:
        raise InvalidInput(f"{where} only one of withItems, withParam, withSequence can be specified")
    if "withSequence" in loops:
        _check_sequence(where, mapping(task, "withSequence", f"{where}.withSequence"))
    if task.get("templateRef") or task.get("inline"):
        return
    callee = text(task, "template", f"{where}.template")
    if not callee:
        raise InvalidInput(f"{where}.template is required")
    if callee not in templates:
        raise InvalidInput(f"{where} template name '{callee}' undefined")
    _check_supplied(where, mapping(templates[callee], "inputs", f"templates.{callee}.inputs"), arguments)


def _check_sequence(where: str, loop: Document) -> None:
    ends = [end for end in ("count", "end") if loop.get(end) is not None]
    if len(ends) > 1:
        raise InvalidInput(f"{where} only one of count or end can be defined in withSequence")
    if not ends:
        raise InvalidInput(f"{where} must define count or end in withSequence")


def _check_supplied(where: str, inputs: Document, arguments: Document) -> None:
    """Whether the arguments cover the parameters that have no value of their own."""
    given = {argument.get("name") for _, argument in mappings(arguments, "parameters", f"{where}.arguments.parameters")}
    for path, parameter in mappings(inputs, "parameters", "inputs.parameters"):
        name = text(parameter, "name", f"{path}.name")
        if name not in given and all(parameter.get(key) is None for key in ("value", "default", "valueFrom")):
            raise InvalidInput(f"{where} inputs.parameters.{name} was not supplied")


def _check_values(place: str, holder: Document) -> None:
    """Names of parameters and artifacts."""
    for kind in ("parameters", "artifacts"):
        where = f"{place}.{kind}"
        _by_name(mappings(holder, kind, where), where, _SHORT_NAME, _SHORT_NAME_RULE)


def _named(things: Iterable[tuple[str, Document]], place: str) -> dict[str, Document]:
    """Templates, tasks or steps."""
    return _by_name(things, place, _LONG_NAME, _LONG_NAME_RULE)


def _by_name(
    things: Iterable[tuple[str, Document]], place: str, pattern: re.Pattern[str], rule: str
) -> dict[str, Document]:
    found: dict[str, Document] = {}
    for index, (path, thing) in enumerate(things):
        name = text(thing, "name", f"{path}.name")
        if not name:
            raise InvalidInput(f"{place}[{index}].name is required")
        if not pattern.fullmatch(name):
            raise InvalidInput(f"{place}[{index}].name: '{name}' is invalid: {rule}")
        if name in found:
            raise InvalidInput(f"{place}[{index}].name '{name}' is not unique")
        found[name] = thing
    return found
