from __future__ import annotations

import json
from typing import Any

import pytest

from services.pipeline_registry.templates import read_template
from shared.errors import InvalidInput
from tests.support.packages import CORPUS

LEAF = {"name": "t", "container": {"image": "alpine"}}
NEEDY = {"name": "n", "inputs": {"parameters": [{"name": "p"}]}, "container": {"image": "alpine"}}
SHORT = "name must consist of alpha-numeric characters, '_' or '-'"
LONG = "name must consist of alpha-numeric characters or '-', and must start with an alpha-numeric character"


def read(*templates: Any, **spec: Any) -> None:
    document = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": {"templates": templates, **spec}}
    read_template(json.dumps(document), "p")


def dag(*tasks: Any) -> Any:
    return {"name": "main", "dag": {"tasks": tasks}}


def steps(*groups: Any) -> Any:
    return {"name": "main", "steps": groups}


def task(name: str = "a", template: str = "t", **others: Any) -> Any:
    return {"name": name, "template": template, **others}


@pytest.mark.parametrize(
    ("templates", "spec"),
    [
        ([], {}),
        ([LEAF], {}),
        ([LEAF], {"entrypoint": "t", "onExit": "t", "arguments": {"parameters": [{"name": "no-value"}]}}),
        ([], {"entrypoint": "elsewhere", "workflowTemplateRef": {"name": "w"}}),
        ([{"name": "t", "suspend": {}}, {"name": "r", "resource": {}}, {"name": "h", "http": {}}], {}),
        ([LEAF, dag(task("a"), task("b", dependencies=["a"]))], {}),
        ([LEAF, dag(task("a-1"), task("b"), task("c", depends="(a-1.Succeeded || !b) && a-1"))], {}),
        ([LEAF, steps([task("a"), task("b")], [task("c", withItems=[1])])], {}),
        ([LEAF, steps({"steps": [task("a")]})], {}),
        ([dag({"name": "a", "templateRef": {"name": "x"}}, {"name": "b", "inline": LEAF})], {}),
        ([NEEDY, dag(task("a", "n", arguments={"parameters": [{"name": "p", "value": "{{item}}"}]}))], {}),
        ([dag(task("again", "main"))], {}),
    ],
)
def test_what_could_run_for_somebody_passes(templates: list[Any], spec: dict[str, Any]) -> None:
    read(*templates, **spec)


@pytest.mark.parametrize(
    ("templates", "spec", "text"),
    [
        ([LEAF], {"entrypoint": "main"}, "template name 'main' undefined"),
        ([LEAF], {"onExit": "bye"}, "template name 'bye' undefined"),
        ([{"container": {"image": "a"}}], {}, "templates[0].name is required"),
        ([LEAF, LEAF], {}, "templates[1].name 't' is not unique"),
        ([{**LEAF, "name": "my_t"}], {}, f"templates[0].name: 'my_t' is invalid: {LONG}"),
        ([{**LEAF, "name": "t" * 129}], {}, f"templates[0].name: '{'t' * 129}' is invalid: {LONG}"),
        (
            [{"name": "t"}],
            {},
            "templates.t template type unspecified. choose one of: container, script, resource, dag, steps, suspend",
        ),
        (
            [{**LEAF, "suspend": {}}],
            {},
            "templates.t multiple template types specified. choose one of: container, suspend",
        ),
        ([{"name": "t", "container": {"command": ["a"]}}], {}, "templates.t.container.image may not be empty"),
        ([{"name": "t", "script": {"image": ""}}], {}, "templates.t.script.image may not be empty"),
        (
            [],
            {"arguments": {"parameters": [{"name": "a"}, {"name": "a"}]}},
            "spec.arguments.parameters[1].name 'a' is not unique",
        ),
        (
            [],
            {"arguments": {"parameters": [{"name": "a b"}]}},
            f"spec.arguments.parameters[0].name: 'a b' is invalid: {SHORT}",
        ),
        (
            [{**LEAF, "outputs": {"artifacts": [{"name": "x"}, {"name": "x"}]}}],
            {},
            "templates.t.outputs.artifacts[1].name 'x' is not unique",
        ),
        ([dag()], {}, "templates.main must have at least one task"),
        ([LEAF, dag(task(), task())], {}, "templates.main.tasks[1].name 'a' is not unique"),
        ([LEAF, dag(task("b", "x"))], {}, "templates.main.tasks.b template name 'x' undefined"),
        ([LEAF, dag({"name": "b"})], {}, "templates.main.tasks.b.template is required"),
        (
            [LEAF, dag(task("b", dependencies=["Make folds"]))],
            {},
            "templates.main.tasks.b dependency 'Make folds' not defined",
        ),
        ([LEAF, dag(task("b", depends="c.Failed"))], {}, "templates.main.tasks.b dependency 'c' not defined"),
        (
            [LEAF, dag(task("a", dependencies=["b"]), task("b", dependencies=["a"]))],
            {},
            "templates.main dependency cycle detected: a->b->a",
        ),
        (
            [LEAF, dag(task("a", depends="c"), task("b", depends="a"), task("c", depends="b"))],
            {},
            "templates.main dependency cycle detected: a->c->b->a",
        ),
        (
            [LEAF, dag(task("a"), task("b", depends="a"), task("c", dependencies=["a"]))],
            {},
            "templates.main cannot use both 'depends' and 'dependencies' in the same DAG template",
        ),
        (
            [LEAF, dag(task(withItems=[1], withParam="[]"))],
            {},
            "templates.main.tasks.a only one of withItems, withParam, withSequence can be specified",
        ),
        (
            [LEAF, dag(task(withSequence={"start": "1"}))],
            {},
            "templates.main.tasks.a must define count or end in withSequence",
        ),
        (
            [LEAF, dag(task(withSequence={"count": "1", "end": "1"}))],
            {},
            "templates.main.tasks.a only one of count or end can be defined in withSequence",
        ),
        ([NEEDY, dag(task("a", "n"))], {}, "templates.main.tasks.a inputs.parameters.p was not supplied"),
        ([steps()], {}, "templates.main must have at least one step"),
        ([steps([])], {}, "templates.main.steps[0] must have at least one step"),
        ([LEAF, steps([task("a")], [task("a")])], {}, "templates.main.steps[1].name 'a' is not unique"),
        ([LEAF, steps([task("a", "x")])], {}, "templates.main.steps.a template name 'x' undefined"),
    ],
)
def test_what_nobody_could_run_is_refused_by_name(templates: list[Any], spec: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        read(*templates, **spec)
    assert refusal.value.message == text


@pytest.mark.parametrize(
    "template",
    [
        {"name": 5, "container": {"image": "a"}},
        {"name": "t", "container": "text"},
        {"name": "t", "container": {"image": 5}},
        {"name": "t", "dag": {"tasks": "text"}},
        {"name": "t", "dag": []},
        {"name": "t", "steps": {}},
        {"name": "t", "steps": ["text"]},
        {"name": "t", "inputs": {"parameters": {}}, "suspend": {}},
        dag({"name": "a", "template": "main", "dependencies": [5]}),
        dag({"name": "a", "template": "main", "dependencies": {}}),
        dag({"name": "a", "template": 5}),
        dag({"name": "a", "template": "main", "arguments": []}),
    ],
)
def test_parts_of_the_wrong_shape_are_refused(template: Any) -> None:
    with pytest.raises(InvalidInput, match="Failed to parse the workflow template"):
        read(template)


def test_a_long_chain_of_tasks_is_no_trouble() -> None:
    chain = [task("t0"), *(task(f"t{nth}", dependencies=[f"t{nth - 1}"]) for nth in range(1, 20_000))]
    read(LEAF, dag(*reversed(chain)))


def test_of_the_compiled_pipelines_only_the_broken_one_is_refused() -> None:
    refused = {}
    for file in sorted(CORPUS.glob("*/*.yaml")):
        try:
            read_template(file.read_text(), "p")
        except InvalidInput as refusal:
            refused[file.stem] = refusal.message
    assert refused == {"own-invalid-undefined-dependency": "templates.main.tasks.b dependency 'Make folds' not defined"}
