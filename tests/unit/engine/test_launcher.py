"""What a v2-compatible step is told, and what is made of what it leaves; no processes."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from services.run.engine.embedded.launching import Store, launched
from services.run.engine.embedded.orders import Process, StepKind, StepOrder
from services.run.engine.embedded.runtime import launcher
from services.run.engine.embedded.runtime.launcher import Launch, Refused
from services.run.engine.embedded.specs import CannotPrepare

ROOT = "minio://b/v2/artifacts/pipeline/p/r/t"
SCHEMA = {"schemaTitle": "system.Model", "instanceSchema": ""}


def arguments(*inputs: str, info: Any = None, command: tuple[str, ...] = ("true",), **flags: str) -> list[str]:
    given = {"runtime_info_json": json.dumps(info or {}), "artifact_root": ROOT, **flags}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    return [*words, "--", *inputs, "--", *command]


def launch(*inputs: str, **given: Any) -> Launch:
    return launcher.parse(arguments(*inputs, **given))


def test_flags_inputs_and_command_are_told_apart() -> None:
    found = launch("a=1", "b=x=y", "c=", command=("sh", "-c", "--", "--"), task_name="t", mlmd_server_port="")

    assert found.flags["task_name"] == "t"
    assert found.flags["mlmd_server_port"] == ""
    assert found.parameters == {"a": "1", "b": "x=y", "c": ""}
    assert found.command == ["sh", "-c", "--", "--"]


def test_a_flag_may_hold_its_value_itself() -> None:
    assert launcher.parse(["--a=b=c", "-runtime_info_json={}", "--", "--", "true"]).flags["a"] == "b=c"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--runtime_info_json", "{}", "--", "true"],
        ["--runtime_info_json", "{}", "--", "--"],
        ["--runtime_info_json", "{", "--", "--", "true"],
        ["--", "--", "true"],
        ["--runtime_info_json", "[]", "--", "--", "true"],
        ["--runtime_info_json", "{}", "--", "no equals sign", "--", "true"],
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(words: list[str]) -> None:
    with pytest.raises(Refused):
        launcher.parse(words)


@pytest.mark.parametrize(
    ("type_", "text", "told", "written"),
    [
        ("STRING", "a \"b\" 'c'\n{{$}}", {"stringValue": "a \"b\" 'c'\n{{$}}"}, "a \"b\" 'c'\n{{$}}"),
        ("STRING", "", {"stringValue": ""}, ""),
        ("INT", "12", {"intValue": "12"}, "12"),
        ("INT", "-9007199254740993", {"intValue": "-9007199254740993"}, "-9007199254740993"),
        ("DOUBLE", "0.5", {"doubleValue": 0.5}, "0.5"),
        ("DOUBLE", "1e-05", {"doubleValue": 1e-05}, "0.00001"),
        ("DOUBLE", "3.0", {"doubleValue": 3.0}, "3"),
        ("DOUBLE", "1e22", {"doubleValue": 1e22}, "10000000000000000000000"),
        ("DOUBLE", "100", {"doubleValue": 100.0}, "100"),
    ],
)
def test_a_parameter_is_told_by_its_type_and_written_without_exponent(
    type_: str, text: str, told: dict[str, Any], written: str
) -> None:
    found = launcher.executor_input(launch(f"p={text}", info={"inputParameters": {"p": {"type": type_}}}), {})

    assert found["inputs"]["parameters"] == {"p": told}
    values = launcher.placeholders(found)
    assert launcher.filled("<{{$.inputs.parameters['p']}}>", values) == f"<{written}>", "what it says stays as it is"


@pytest.mark.parametrize(("type_", "text"), [("INT", "1.5"), ("INT", ""), ("DOUBLE", "x"), ("BOOL", "true")])
def test_a_parameter_that_is_not_of_its_type_is_refused(type_: str, text: str) -> None:
    with pytest.raises(Refused, match="parameter p"):
        launcher.executor_input(launch(f"p={text}", info={"inputParameters": {"p": {"type": type_}}}), {})


def test_the_executor_input_has_the_shape_that_sdks_read() -> None:
    info = {
        "inputArtifacts": {"i": {"metadataPath": "/in/i", **SCHEMA}},
        "outputParameters": {"o": {"type": "INT", "path": "/out/o"}},
        "outputArtifacts": {"m": {"metadataPath": "/out/m", "schemaTitle": "", "instanceSchema": "title: X"}},
    }
    record = {"name": "table", "uri": "gs://x/table", "metadata": {"rows": 3}}

    found = launcher.executor_input(launch(info=info), {"i": record})

    type_ = {"schemaTitle": "system.Model"}
    assert found["inputs"]["artifacts"] == {"i": {"artifacts": [{**record, "type": type_}]}}
    out = {"name": "m", "type": {"instanceSchema": "title: X"}, "uri": f"{ROOT}/m", "metadata": {}}
    assert found["outputs"] == {
        "parameters": {"o": {"outputFile": "/out/o"}},
        "artifacts": {"m": {"artifacts": [out]}},
        "outputFile": "/tmp/kfp_outputs/output_metadata.json",
    }
    values = launcher.placeholders(found)
    words = ["{{$.inputs.artifacts['i'].uri}}", "{{$.inputs.artifacts['i'].path}}", "{{$.outputs.artifacts['m'].uri}}"]
    words += ["{{$.outputs.artifacts['m'].path}}", "{{$.outputs.parameters['o'].output_file}}", "{{$.else}} {{x}}"]
    assert [launcher.filled(word, values) for word in words] == [
        "gs://x/table",
        "/gcs/x/table",
        f"{ROOT}/m",
        "/minio/b/v2/artifacts/pipeline/p/r/t/m",
        "/out/o",
        "{{$.else}} {{x}}",
    ]
    assert json.loads(launcher.filled("{{$}}", values)) == found


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("minio://b/k/x", "/minio/b/k/x"),
        ("s3://b/k", "/s3/b/k"),
        ("gs://b/k", "/gcs/b/k"),
        ("https://h/k", None),
        ("minio://", None),
        ("", None),
    ],
)
def test_a_uri_has_one_place_in_the_step(uri: str, path: str | None) -> None:
    assert launcher.local_path(uri) == path


def test_what_the_executor_says_becomes_files(tmp_path: Path) -> None:
    outputs = {name: {"type": type_, "path": str(tmp_path / name / "data")} for name, type_ in TYPES.items()}
    info = {"outputParameters": outputs, "outputArtifacts": {"m": {"metadataPath": str(tmp_path / "m"), **SCHEMA}}}
    found = launch(info=info)
    said = {
        "parameters": {"i": {"intValue": 3}, "d": {"doubleValue": 1e-07}, "s": {"stringValue": "x\n"}},
        "artifacts": {"m": {"artifacts": [{"name": "m", "uri": "", "metadata": {"rows": 3}}]}},
    }

    launcher.take_in(found, launcher.executor_input(found, {}), said)

    assert {name: (tmp_path / name / "data").read_text() for name in TYPES} == {"i": "3", "d": "0.0000001", "s": "x\n"}
    assert json.loads((tmp_path / "m").read_text()) == {
        "name": "m",
        "type": {"schemaTitle": "system.Model"},
        "uri": f"{ROOT}/m",
        "metadata": {"rows": 3},
    }


TYPES = {"i": "INT", "d": "DOUBLE", "s": "STRING"}


def test_a_parameter_that_is_not_declared_is_refused() -> None:
    found = launch()
    with pytest.raises(Refused, match="does not declare: x"):
        launcher.take_in(found, launcher.executor_input(found, {}), {"parameters": {"x": {"intValue": 1}}})


def test_the_program_is_one_that_old_images_understand() -> None:
    ast.parse(Path(launcher.__file__).read_text(), feature_version=(3, 7))


# The engine's side.

STORE = Store(bucket="b", default_root="minio://b/v2/artifacts")


def order(*words: str, node_name: str = "wf.t") -> StepOrder:
    return StepOrder(
        node_id="wf-1",
        node_name=node_name,
        template_name="t",
        kind=StepKind.CONTAINER,
        main=Process(name="main", command=("/kfp-launcher/launch", *words)),
        init=(Process(name="kfp-launcher"), Process(name="mine")),
    )


def carried_out(node_name: str = "wf.t", pipeline_root: str = "") -> StepOrder:
    info = {"outputArtifacts": {"m": {"metadataPath": "/out/m", **SCHEMA}}}
    words = arguments(info=info, pipeline_name="pipeline/p", run_id="r", task_name="t", pipeline_root=pipeline_root)
    given = order(*words, node_name=node_name)
    return launched(given, given.main.command, STORE)


@pytest.mark.parametrize(
    ("root", "uri"),
    [
        ("", "minio://b/v2/artifacts/pipeline/p/r/t/m"),
        ("minio://b/mine/", "minio://b/mine/pipeline/p/r/t/m"),
        ("s3://b", "s3://b/pipeline/p/r/t/m"),
        ("gs://b/mine", "minio://b/v2/artifacts/pipeline/p/r/t/m"),
        ("minio://other/mine", "minio://b/v2/artifacts/pipeline/p/r/t/m"),
    ],
)
def test_artifacts_go_below_the_root_where_that_is_ours(root: str, uri: str) -> None:
    found = carried_out(pipeline_root=root)

    (data,) = found.output_artifacts
    assert data.path == launcher.local_path(uri)
    assert data.s3 == {"key": uri.split("/b/", 1)[1]}
    assert launcher.parse(found.main.command[1:]).output_uri("m") == uri, "and the launcher agrees"


def test_an_item_of_a_loop_has_a_folder_of_its_own() -> None:
    (data,) = carried_out(node_name="wf.t(0:a)").output_artifacts
    assert data.s3 == {"key": "v2/artifacts/pipeline/p/r/t/wf-1/m"}


def test_the_launcher_is_put_where_an_init_container_would_have_copied_it() -> None:
    found = carried_out()

    assert [each.name for each in found.init] == ["mine"]
    (program,) = found.input_artifacts
    assert (program.path, program.mode) == ("/kfp-launcher/launch", 0o755)
    assert (program.raw or "").startswith("#!/usr/bin/env python3\n")


def test_a_launcher_without_inputs_and_command_cannot_be_prepared() -> None:
    given = order("--", "true")
    with pytest.raises(CannotPrepare):
        launched(given, given.main.command, STORE)
