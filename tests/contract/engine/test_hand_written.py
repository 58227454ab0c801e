"""What people write into manifests by hand and no SDK compiles, run for real."""

from __future__ import annotations

from tests.contract.engine.manifests import c, dag, given, of, on_claim, task, workflow
from tests.contract.engine.recorder import Recorder


async def test_a_hook_runs_after_its_task_and_before_what_follows(recorder: Recorder) -> None:
    arguments = {"parameters": [{"name": "v", "value": f"{of('a')} {{{{tasks.a.status}}}}"}]}
    run = await recorder.carry_out(
        workflow(
            dag(
                task("a", "a", hooks={"exit": {"template": "note", "arguments": arguments}}),
                task("b", "b", "a"),
                task("c", "fails", onExit="note-end", continueOn={"failed": True}),
            ),
            templates={
                "a": c("echo from a > /tmp/o", gives={"o": "/tmp/o"}),
                "b": on_claim("cp /v/noted /tmp/o", gives={"o": "/tmp/o"}),
                "fails": c("exit 3"),
                "note": on_claim("echo " + given("v") + " > /v/noted", takes=["v"]),
                "note-end": c("true"),
            },
        )
    )

    assert run.phases() == {
        "": "Succeeded",
        ".a": "Succeeded",
        ".a.onExit": "Succeeded",
        ".b": "Succeeded",
        ".c": "Failed",
        ".c.onExit": "Succeeded",
    }
    assert run.value(".b") == "from a Succeeded"
    assert run.children(".a") == {".a.onExit", ".b"}


async def test_expressions_compute_what_a_step_is_told_and_whether_it_is_retried(recorder: Recorder) -> None:
    template = c(
        "echo {{=asInt(inputs.parameters.n) * 2 + asInt(retries)}} > /tmp/o; exit $((5 - {{retries}}))",
        takes=["n"],
        gives={"o": "/tmp/o"},
        retryStrategy={"limit": 9, "expression": "asInt(lastRetry.exitCode) > 3"},
    )
    run = await recorder.carry_out(
        workflow(
            dag(task("a", "t", given={"n": "{{=string(len(workflow.parameters.p))}}"})),
            templates={"t": template},
            arguments={"parameters": [{"name": "p", "value": "four"}]},
        )
    )
    assert run.phases() == {"": "Failed", ".a": "Failed", ".a(0)": "Failed", ".a(1)": "Failed", ".a(2)": "Failed"}
    assert run.node(".a")["message"] == "retryStrategy.expression evaluated to false"
    assert [run.value(f".a({attempt})") for attempt in range(3)] == ["8", "9", "10"]


async def test_the_defaults_of_templates_are_those_of_every_step(recorder: Recorder) -> None:
    run = await recorder.carry_out(
        workflow(
            dag(task("a", "t")),
            templates={
                "t": {
                    "container": {"args": ["echo $WHO > /tmp/o"]},
                    "outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/tmp/o"}}]},
                }
            },
            templateDefaults={
                "container": {"image": "any", "command": ["sh", "-c"], "env": [{"name": "WHO", "value": "default"}]},
            },
        )
    )

    assert run.value(".a") == "default"
