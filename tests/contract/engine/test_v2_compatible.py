"""Pipelines in v2-compatible mode: their steps find a launcher, and their artifacts where its rules say."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.run.engine.embedded.driver import EmbeddedEngine
from tests.contract.engine.engines import EngineUnderTest, RunnerProcess, embedded, open_blobs, runner_process
from tests.contract.engine.manifests import CLAIM, dag, file_of, task, workflow
from tests.contract.engine.recorder import Recorder, Run, recording, said
from tests.support.expected import PIPELINES
from tests.support.servers import ObjectStoreAccess

COMPILED = PIPELINES / "sdk-1.8.22-v2compat"
SDK = Path(__file__).parents[3] / ".clients" / "kfp-1.8.22"
RUN_ID = "a-run"
LABELS = {"podMetadata": {"labels": {"pipeline/runid": RUN_ID}}}
DATASET = {"schemaTitle": "system.Dataset"}
A = {"metadataPath": "/tmp/outputs/a/data", **DATASET}


def compiled(name: str, **given: str) -> dict[str, Any]:
    """As the creation of a run completes it."""
    document = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())
    for parameter in document["spec"]["arguments"]["parameters"]:
        parameter["value"] = given.get(parameter["name"].replace("-", "_"), parameter["value"])
    return {"spec": {**document["spec"], **LABELS}}


def launched(
    script: str, *, name: str = "t", root: str = "", parameters: tuple[str, ...] = (), **info: Any
) -> dict[str, Any]:
    """A step as SDKs write it, in short; `info` is its runtime info."""
    artifacts = info.get("outputArtifacts", {})
    flags = {
        "runtime_info_json": "$(KFP_V2_RUNTIME_INFO)",
        "task_name": name,
        "pipeline_name": "pipeline/p",
        "run_id": "$(KFP_RUN_ID)",
        "pipeline_root": root,
    }
    return {
        "container": {
            "image": "any",
            "command": [
                "/kfp-launcher/launch",
                *(word for flag, value in flags.items() for word in (f"--{flag}", value)),
                *("--", *parameters, "--"),
            ],
            "args": ["sh", "-ec", script],
            "env": [
                {"name": "KFP_RUN_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['pipeline/runid']"}}},
                {"name": "KFP_V2_RUNTIME_INFO", "value": json.dumps(info)},
            ],
            "volumeMounts": [{"name": "kfp-launcher", "mountPath": "/kfp-launcher"}],
        },
        "initContainers": [
            {
                "name": "kfp-launcher",
                "image": "any",
                "command": ["launcher", "--copy", "/kfp-launcher/launch"],
                "mirrorVolumeMounts": True,
            }
        ],
        "volumes": [{"name": "kfp-launcher"}],
        "outputs": {"artifacts": [{"name": each, "path": a["metadataPath"]} for each, a in artifacts.items()]},
    }


async def log_of(under_test: EngineUnderTest, run: Run, name: str = "") -> str:
    """Without what the runtime says first."""
    text = (await under_test.blobs.get(run.artifact(name, "main-logs")["s3"]["key"])).decode()
    return text.partition("\n")[2]


async def output_of(under_test: EngineUnderTest, run: Run, name: str, artifact: str) -> bytes:
    packed = await under_test.blobs.get(run.artifact(name, artifact)["s3"]["key"])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        file = archive.extractfile(archive.getmembers()[0])
        assert file is not None
        return file.read()


async def record_of(under_test: EngineUnderTest, run: Run, name: str, artifact: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await output_of(under_test, run, name, artifact))
    return found


async def test_what_the_sdk_compiles_runs_and_leaves_its_artifacts_below_the_pipeline_root(
    under_test: EngineUnderTest, recorder: Recorder
) -> None:
    blobs = under_test.blobs
    root = f"minio://{blobs.bucket}/mine"
    run = await recorder.carry_out(compiled("own-plain-commands", pipeline_root=root, rows="3"))

    assert run.phase == "Succeeded"
    assert run.value(".sum-up", "sum-up-said") == '3 rows of 3: a "quoted" $word, deep'
    folder = f"{root.removeprefix(f'minio://{blobs.bucket}/')}/pipeline/own-plain-commands/{RUN_ID}"
    assert await blobs.get(f"{folder}/make/table") == b"1\n2\n3\n"
    assert await blobs.list_keys(f"{folder}/make/folder/") == [
        f"{folder}/make/folder/inner/file",
        f"{folder}/make/folder/label",
    ]
    assert await blobs.get(f"{folder}/sum-up/model") == b"from make\n", "which it knew by its input's URI"
    assert await record_of(under_test, run, ".sum-up", "sum-up-model") == {
        "name": "model",
        "type": {"schemaTitle": "system.Model"},
        "uri": f"minio://{blobs.bucket}/{folder}/sum-up/model",
        "metadata": {"rows": 3},
    }


async def test_function_components_read_and_write_through_the_sdk_itself(
    object_store_access: ObjectStoreAccess,
) -> None:
    """They install it first; here pip finds it installed already, among packages that the step is shown."""
    packages = next(SDK.glob("lib/python*/site-packages"))
    shown = {
        "HEADRACE_STEP_HOST_DIRECTORIES": f"/usr,/etc,/var,/opt,{packages}",
        "HEADRACE_STEP_ENVIRONMENT": f"PYTHONPATH={packages}",
    }
    with runner_process(**shown) as runner:
        async with embedded(runner)(object_store_access) as made, recording(made.engine) as recorder:
            run = await recorder.carry_out(compiled("own-function-components"), within_seconds=60)

            assert run.phase == "Succeeded", [await log_of(made, run, name) for name in (".make", ".use")]
            assert await output_of(made, run, ".use", "use-Output") == b"4.5 of 4.5 in 3 rows"
            assert (await record_of(made, run, ".make", "make-table"))["metadata"] == {"rows": 3}


async def test_without_a_root_and_with_one_elsewhere_artifacts_go_to_our_own(
    under_test: EngineUnderTest, recorder: Recorder
) -> None:
    ours = f"minio://{under_test.blobs.bucket}/v2/artifacts/pipeline/p/{RUN_ID}/t"
    for root, notice in (
        ("", ""),
        ("gs://a-bucket/x", f"launcher: nothing can be stored at gs://a-bucket/x from here; artifacts go to {ours}\n"),
    ):
        script = "echo {{$.outputs.artifacts['a'].uri}} | tee {{$.outputs.artifacts['a'].path}}"
        run = await recorder.carry_out(workflow(launched(script, root=root, outputArtifacts={"a": A}), **LABELS))

        assert run.phase == "Succeeded"
        assert await log_of(under_test, run) == f"{notice}{ours}/a\n"
        assert await under_test.blobs.get(f"v2/artifacts/pipeline/p/{RUN_ID}/t/a") == f"{ours}/a\n".encode()


@pytest.mark.parametrize(
    ("key", "phase", "message"),
    [
        ("nothing/there", "Succeeded", ""),
        ("manifests/x", "Error", "artifact {uri}: the key 'manifests/x' lies among what the server keeps"),
        ("x" * 1100, "Error", "artifact {uri}: the key '" + "x" * 200 + "' is not valid"),
    ],
    ids=["lost", "reserved", "long"],
)
async def test_a_step_may_name_the_place_of_its_data_but_not_every_place(
    under_test: EngineUnderTest, recorder: Recorder, key: str, phase: str, message: str
) -> None:
    uri = f"minio://{under_test.blobs.bucket}/{key}"
    output = {"artifacts": {"a": {"artifacts": [{"uri": uri}]}}}
    makes = launched(f"echo '{json.dumps(output)}' > /tmp/kfp_outputs/output_metadata.json", outputArtifacts={"a": A})
    reads = launched("[ ! -e {{$.inputs.artifacts['a'].path}} ]", inputArtifacts={"a": {**A, "metadataPath": "/in/a"}})
    reads["inputs"] = {"artifacts": [{"name": "a", "path": "/in/a"}]}
    tasks = (task("a", "makes"), task("b", "reads", "a", files={"a": file_of("a")}))
    run = await recorder.carry_out(workflow(dag(*tasks), templates={"makes": makes, "reads": reads}, **LABELS))

    assert (run.node(".b")["phase"], run.node(".b").get("message", "")) == (phase, message.format(uri=uri))


async def test_items_of_a_loop_do_not_write_over_each_other(under_test: EngineUnderTest, recorder: Recorder) -> None:
    step = launched("echo $0 > {{$.outputs.artifacts['a'].path}}", outputArtifacts={"a": A})
    step["inputs"] = {"parameters": [{"name": "i"}]}
    step["container"]["args"].append("{{inputs.parameters.i}}")
    looped = task("t", "step", given={"i": "{{item}}"}, withItems=["x", "y"])
    run = await recorder.carry_out(workflow(dag(looped), templates={"step": step}, **LABELS))

    uris = [(await record_of(under_test, run, f".t({n}:{i})", "a"))["uri"] for n, i in enumerate("xy")]
    keys = [uri.removeprefix(f"minio://{under_test.blobs.bucket}/") for uri in uris]
    assert [await under_test.blobs.get(key) for key in keys] == [b"x\n", b"y\n"]


@pytest.mark.parametrize(
    ("script", "info", "message", "text"),
    [
        ("exit 3", {}, "Error (exit code 3)", ""),
        ("kill -9 $$$$", {}, "Error (exit code 137)", ""),
        (
            "true",
            {"outputParameters": {"o": {"type": "INT", "path": "/tmp/outputs/o/data"}}},
            "Error (exit code 1)",
            "launcher: output parameter o: /tmp/outputs/o/data: No such file or directory\n",
        ),
        (
            "echo many > {{$.outputs.parameters['o'].output_file}}",
            {"outputParameters": {"o": {"type": "INT", "path": "/tmp/outputs/o/data"}}},
            "Error (exit code 1)",
            "launcher: parameter o is no INT: 'many'\n",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_step_that_does_not_do_what_it_declares_fails(
    under_test: EngineUnderTest, recorder: Recorder, script: str, info: dict[str, Any], message: str, text: str
) -> None:
    run = await recorder.carry_out(workflow(launched(script, **info), **LABELS))

    assert (run.phase, run.message) == ("Failed", message)
    assert await log_of(under_test, run) == text


async def test_a_launcher_that_is_told_nonsense_is_an_error_before_anything_starts(recorder: Recorder) -> None:
    step = launched("true")
    step["container"]["env"][1]["value"] = "no JSON"
    run = await recorder.carry_out(workflow(step, **LABELS))

    assert run.phase == "Error"
    assert run.message.startswith("what the launcher is told cannot be read: ")


async def test_terminate_reaches_the_command_behind_the_launcher(recorder: Recorder) -> None:
    run = await recorder.begin(workflow(launched("echo ready; sleep 300"), **LABELS))
    await said(recorder, run, "", "ready")
    await recorder.engine.terminate(run.name)
    await recorder.end_of(run)

    assert run.message == "terminated"


async def test_what_a_step_leaves_is_fetched_by_the_engines_successor_too(
    shared_runner: RunnerProcess, object_store_access: ObjectStoreAccess
) -> None:
    script = "echo ready; until [ -e /v/go ]; do sleep 0.05; done; echo x > {{$.outputs.artifacts['a'].path}}"
    step = launched(script, name="survivor", outputArtifacts={"a": A})
    step["container"]["volumeMounts"].append({"name": "v", "mountPath": "/v"})
    step["volumes"].append(CLAIM)
    blobs = await open_blobs(object_store_access)
    engine = EmbeddedEngine(
        shared_runner.client(), blobs, steps_dir=shared_runner.steps_dir, data_dir=shared_runner.data_dir
    )
    async with recording(engine) as recorder:
        work = asyncio.create_task(engine.run())
        run = await recorder.begin(workflow(step, **LABELS))
        await said(recorder, run, "", "ready")
        work.cancel()
        await asyncio.wait([work])
        shared_runner.let_go(run.name)

        work = asyncio.create_task(engine.run())
        await engine.submit(run.submission())
        await recorder.end_of(run)
        assert run.phase == "Succeeded"
        assert await blobs.get(f"v2/artifacts/pipeline/p/{RUN_ID}/survivor/a") == b"x\n"
        work.cancel()
        await asyncio.wait([work])
    blobs.close()
