"""Real compiled pipelines, walked without processes: steps give what the corpus expects of them."""

import json
from typing import Any

import pytest

from services.run.engine.embedded.manifest import ManifestError, Workflow
from services.run.engine.embedded.nodes import Node
from services.run.engine.embedded.orders import StepOrder
from services.run.engine.embedded.validation import refuse_unsupported, validate
from tests.support.embedded_runs import NAME, PIPELINES, FakeExecutor, Outcome, workflow

EXPECTED: dict[str, dict[str, Any]] = json.loads((PIPELINES / "expected.json").read_text())
WALKED = [name for name, each in EXPECTED.items() if each.get("deterministic") and "nodes" in each]
REFUSED = [name for name, each in EXPECTED.items() if each.get("refused")]


def manifest(name: str) -> Workflow:
    return workflow((PIPELINES / name).read_text(), **EXPECTED[name].get("params", {}))


def as_expected(name: str) -> FakeExecutor:
    """The run of a pipeline whose steps end as the corpus says."""
    wanted = {node["name"]: node for node in EXPECTED[name]["nodes"]}

    def script(order: StepOrder) -> Outcome:
        node = wanted[spoken(order.node_name)]
        values = {key: text.replace("<wf>", NAME) for key, text in node.get("outputParameters", {}).items()}
        # What the scripts print; only the steps sample reads it back, and it prints its argument.
        result = "world" if order.needs_result else None
        if node.get("message") == "Step exceeded its deadline":
            return Outcome(seconds=60)
        code = 0 if node["phase"] == "Succeeded" else int(node["message"].rpartition(" ")[2].rstrip(")"))
        stored = tuple(node.get("outputArtifacts", ()))
        return Outcome(exit_code=code, parameters=values, artifacts=stored, result=result)

    return FakeExecutor(manifest(name), script)


def spoken(text: str) -> str:
    return text.replace(NAME, "<wf>")


def described(run: FakeExecutor, node: Node) -> dict[str, Any]:
    description: dict[str, Any] = {
        "name": spoken(node.name),
        "displayName": spoken(node.display_name),
        "type": node.type.value,
        "phase": node.phase.value,
        "templateName": node.template_name,
        "message": node.message,
        "children": sorted(spoken(run.stored[each].name) for each in node.children),
        "boundary": spoken(run.stored[node.boundary_id].name) if node.boundary_id else None,
    }
    outputs = node.outputs
    description["outputParameters"] = {p.name: spoken(p.value or "") for p in outputs.parameters} if outputs else {}
    description["outputArtifacts"] = (
        sorted(a.name for a in outputs.artifacts if a.has_location and not a.archive_logs) if outputs else []
    )
    return description


def completed(node: dict[str, Any]) -> dict[str, Any]:
    """An expectation with the fields it leaves out when empty."""
    blank: dict[str, Any] = {
        "message": "",
        "children": [],
        "boundary": None,
        "outputParameters": {},
        "outputArtifacts": [],
    }
    return {**blank, **node, "children": sorted(node.get("children", []))}


@pytest.mark.parametrize("name", WALKED)
def test_a_pipeline_ends_as_the_corpus_expects_node_by_node(name: str) -> None:
    run = as_expected(name).run()
    expected = EXPECTED[name]
    assert (run.turn.phase.value, run.turn.message) == (expected["phase"], expected["message"])
    found = {node["name"]: node for node in (described(run, each) for each in run.stored.values())}
    assert found == {node["name"]: completed(node) for node in expected["nodes"]}
    assert run.max_running <= expected.get("atMost", run.max_running)


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_pipeline_is_refused_for_the_expected_reason(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        validate(manifest(name))
    assert caught.value.reason == EXPECTED[name]["why"]


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in REFUSED])
def test_every_other_pipeline_is_accepted(name: str) -> None:
    validate(manifest(name))
    refuse_unsupported(manifest(name))


def test_a_coin_decides_which_branch_runs() -> None:
    name = "sdk-0.1.38/testdata-coin.yaml"
    flips = {".flip": {"flip-output": "tails"}}
    run = FakeExecutor(
        manifest(name), lambda order: Outcome(parameters=flips.get(order.node_name.removeprefix(NAME), {}))
    ).run()
    assert run.turn.phase.value == "Succeeded"
    # The other branch was skipped, so its value stays a placeholder, and the step sees it.
    assert run.order(".condition-3.print2").main.command[1] == (
        "{{tasks.condition-1.outputs.parameters.flip-again-output}}"
    )
