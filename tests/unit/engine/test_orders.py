"""What a step is told: every name resolved, and what only the place of execution knows left structured."""

import msgspec
import pytest

from services.run.engine.embedded.manifest import VolumeMount
from services.run.engine.embedded.nodes import Phase
from services.run.engine.embedded.orders import StepKind, StepOrder
from tests.support.embedded_runs import NAME, PIPELINES, FakeExecutor, Outcome, identity, workflow


def ordered(template: str, spec: str = "", **arguments: str) -> StepOrder:
    run = FakeExecutor(
        workflow(
            f"""
spec:
  entrypoint: main
  {spec}
  templates:
  - {template}
""",
            **arguments,
        ),
        who=identity(labels={"team": "blue"}, annotations={"note": "n"}),
    )
    assert run.turn.start, [node.message for node in run.stored.values()]
    return run.turn.start[0]


def test_a_container_is_told_its_command_and_environment() -> None:
    order = ordered("""
    name: main
    container:
      image: alpine
      command: [sh, -c]
      args: ["echo {{workflow.name}} {{workflow.namespace}} {{workflow.uid}} $(X) {{unknown}}"]
      workingDir: /work
      env:
      - {name: X, value: "{{pod.name}}"}
      - {name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
      - {name: S, valueFrom: {secretKeyRef: {name: s, key: k, optional: true}}}
      envFrom: [{prefix: P_, configMapRef: {name: c}}]
""")
    assert (order.node_id, order.node_name, order.kind, order.attempt) == (NAME, NAME, StepKind.CONTAINER, 0)
    assert order.main.args == (f"echo {NAME} kubeflow 00000000-0000-4000-8000-000000000001 $(X) {{{{unknown}}}}",)
    assert (order.main.working_dir, order.main.image) == ("/work", "alpine")
    plain, field, secret = order.main.env
    assert plain.value == NAME
    assert field.value_from is not None
    assert field.value_from.field_ref is not None
    assert field.value_from.field_ref.field_path == "metadata.name"
    assert secret.value_from is not None
    assert secret.value_from.secret_key_ref is not None
    assert secret.value_from.secret_key_ref.optional
    assert order.main.env_from[0].config_map_ref is not None
    assert order.service_account == "pipeline-runner"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("workflow.creationTimestamp", "2026-11-23T00:00:00Z"),
        ("workflow.creationTimestamp.Y", "2026"),
        ("workflow.creationTimestamp.s", "1795392000"),
        ("workflow.labels.team", "blue"),
        ("workflow.annotations.note", "n"),
        ("workflow.serviceAccountName", "pipeline-runner"),
        ("workflow.parameters.a", "1"),
        ("workflow.parameters", '[{"name":"a","value":"1"}]'),
        ("inputs.parameters", '[{"name":"a","value":"1"},{"name":"b","value":"d"}]'),
        ("inputs.artifacts.f.path", "/f"),
        ("outputs.parameters.o.path", "/o"),
        ("outputs.artifacts.z.path", "/z"),
        ("workflow.status", "{{workflow.status}}"),
    ],
)
def test_a_variable_has_its_value(variable: str, value: str) -> None:
    order = ordered(
        f"""
    name: main
    inputs:
      parameters: [{{name: a}}, {{name: b, default: d}}]
      artifacts: [{{name: f, path: /f, raw: {{data: x}}}}]
    container: {{image: i, command: [echo, '{{{{{variable}}}}}']}}
    outputs:
      parameters: [{{name: o, valueFrom: {{path: /o}}}}]
      artifacts: [{{name: z, path: /z}}]
""",
        spec="arguments: {parameters: [{name: a}]}",
        a="1",
    )
    assert order.main.command[1] == value


def test_artifacts_are_placed_with_their_text_and_mode() -> None:
    order = ordered(
        """
    name: main
    inputs:
      parameters: [{name: a}]
      artifacts:
      - {name: raw, path: /raw, mode: 493, raw: {data: "v={{inputs.parameters.a}} $HOME"}}
      - {name: arg, path: /arg}
      - {name: key, path: /key, s3: {key: "k/{{workflow.name}}"}, archive: {none: {}}}
      - {name: absent, path: /absent, optional: true}
    container: {image: i, command: [x]}
""",
        spec="arguments: {parameters: [{name: a}], artifacts: [{name: arg, raw: {data: '{{workflow.parameters.a}}'}}]}",
        a='say "hi"\n',
    )
    raw, arg, key = order.input_artifacts
    assert (raw.path, raw.mode, raw.raw) == ("/raw", 0o755, 'v=say "hi"\n $HOME')
    assert arg.raw == 'say "hi"\n'
    assert (key.s3, key.archive) == ({"key": f"k/{NAME}"}, {"none": {}})


def test_outputs_say_where_to_look_and_what_is_given_already() -> None:
    order = ordered("""
    name: main
    container: {image: i, command: [x]}
    outputs:
      parameters:
      - {name: p, valueFrom: {path: /p, default: 1.0}}
      - {name: lit, value: "in {{pod.name}}"}
      artifacts: [{name: a, path: /a, optional: true, archive: {none: {}}}]
""")
    collected, literal = order.output_parameters
    assert collected.value_from is not None
    assert (collected.value_from.path, collected.value_from.default) == ("/p", "1")
    assert literal.value == f"in {NAME}"
    (artifact,) = order.output_artifacts
    assert (artifact.path, artifact.optional, artifact.archive) == ("/a", True, {"none": {}})


def test_volumes_come_from_the_template_before_the_workflow() -> None:
    order = ordered(
        """
    name: main
    volumes: [{name: v, emptyDir: {}}, {name: unused, emptyDir: {}}]
    initContainers: [{name: first, image: i, command: [x], mirrorVolumeMounts: true}]
    container:
      image: i
      command: [x]
      volumeMounts:
      - {name: v, mountPath: /v, subPath: "s/{{workflow.uid}}_{{pod.name}}"}
      - {name: w, mountPath: /w, readOnly: true}
    sidecars:
    - {name: side, image: i, command: [y], mirrorVolumeMounts: true, volumeMounts: [{name: v, mountPath: /w}]}
""",
        spec="volumes: [{name: w, persistentVolumeClaim: {claimName: '{{workflow.name}}-c'}},"
        " {name: v, hostPath: {path: /}}]",
    )
    volumes = {volume.name: volume for volume in order.volumes}
    assert volumes.keys() == {"v", "w"}
    assert volumes["v"].empty_dir == {}
    assert volumes["w"].persistent_volume_claim is not None
    assert volumes["w"].persistent_volume_claim.claim_name == f"{NAME}-c"
    assert order.main.mounts == (
        VolumeMount(name="v", mount_path="/v", sub_path=f"s/00000000-0000-4000-8000-000000000001_{NAME}"),
        VolumeMount(name="w", mount_path="/w", read_only=True),
    )
    assert order.init[0].mounts == order.main.mounts
    # Its own mount at /w stands; only what is not there yet is mirrored.
    assert [(mount.name, mount.mount_path) for mount in order.sidecars[0].mounts] == [("v", "/w"), ("v", "/v")]


def test_an_order_goes_through_json_unharmed() -> None:
    text = (PIPELINES / "argo/own-sidecar-and-init.yaml").read_text()
    (order,) = FakeExecutor(workflow(text)).turn.start
    assert (len(order.init), len(order.sidecars)) == (1, 1)
    assert msgspec.json.decode(msgspec.json.encode(order), type=StepOrder) == order


def test_a_mount_without_a_volume_is_an_error() -> None:
    run = FakeExecutor(
        workflow("""
spec:
  entrypoint: main
  templates: [{name: main, container: {image: i, volumeMounts: [{name: v, mountPath: /v}]}}]
""")
    )
    assert (run.turn.phase, run.turn.message) == (Phase.ERROR, "volume 'v' not found in workflow spec")


def test_a_patch_of_the_main_container_is_applied() -> None:
    order = ordered(
        """
    name: main
    inputs: {parameters: [{name: a}]}
    podSpecPatch: '{"containers": [{"name": "main", "env": [{"name": "A", "value": "{{inputs.parameters.a}}"}],
      "resources": {"limits": {"cpu": "1"}}}]}'
    container: {image: i, command: [x], env: [{name: A, value: old}, {name: B, value: b}]}
""",
        spec="arguments: {parameters: [{name: a}]}",
        a="new",
    )
    assert [(each.name, each.value) for each in order.main.env] == [("B", "b"), ("A", "new")]
    assert order.main.command == ("x",)


def test_each_container_has_limits_of_its_own() -> None:
    order = ordered(
        """
    name: main
    inputs: {parameters: [{name: memory}]}
    container: {image: i, command: [x], resources: {limits: {memory: "{{inputs.parameters.memory}}", cpu: 0.5}}}
    initContainers: [{name: a, image: i, command: [x], resources: {requests: {memory: 1Gi}, limits: {memory: 1048576}}}]
    sidecars: [{name: b, image: i, command: [x], resources: {limits: {memory: 0, nvidia.com/gpu: 2}}}]
""",
        spec="arguments: {parameters: [{name: memory}]}",
        memory="1.5Ki",
    )
    limits = [(each.memory_bytes, each.cpu_millis) for each in (order.main, *order.init, *order.sidecars)]
    assert limits == [(1536, 500), (1048576, None), (None, None)]


def test_limits_of_a_patch_are_merged_by_name() -> None:
    order = ordered(
        """
    name: main
    podSpecPatch: '{"containers": [{"name": "main", "resources": {"limits": {"memory": "1M", "cpu": 2}}}]}'
    container: {image: i, command: [x], resources: {limits: {memory: 1G}}}
""",
        spec='podSpecPatch: \'{"containers": [{"name": "main", "resources": {"limits": {"cpu": "1"}}}]}\'',
    )
    assert (order.main.memory_bytes, order.main.cpu_millis) == (10**6, 2000)


@pytest.mark.parametrize("text", ["lots", "-1", "{{nowhere}}"])
def test_a_limit_that_is_no_amount_after_its_replacement_is_an_error(text: str) -> None:
    run = FakeExecutor(
        workflow(
            """
spec:
  entrypoint: main
  arguments: {parameters: [{name: memory}]}
  templates:
  - name: main
    inputs: {parameters: [{name: memory}]}
    container: {image: i, command: [x], resources: {limits: {memory: "{{inputs.parameters.memory}}"}}}
""",
            memory=text,
        )
    )
    assert run.turn.phase is Phase.ERROR
    assert run.turn.message.startswith("resources.limits: ")


def test_the_workflows_patch_comes_before_the_templates() -> None:
    order = ordered(
        """
    name: main
    podSpecPatch: '{"containers": [{"name": "main", "env": [{"name": "A", "value": "template"}]}]}'
    container: {image: i, command: [x], env: [{name: A, value: own}]}
""",
        spec='podSpecPatch: \'{"containers": [{"name": "main", "args": ["{{workflow.name}}"], '
        '"env": [{"name": "A", "value": "workflow"}, {"name": "B", "value": "workflow"}]}]}\'',
    )
    assert {each.name: each.value for each in order.main.env} == {"A": "template", "B": "workflow"}
    assert order.main.args == (NAME,)


def test_a_script_carries_its_source_and_a_resource_its_manifest() -> None:
    script = ordered("{name: main, script: {image: i, command: [python3], source: 'print(\"{{workflow.name}}\")'}}")
    assert (script.kind, script.source, script.main.command) == (StepKind.SCRIPT, f'print("{NAME}")', ("python3",))
    resource = ordered("""
    name: main
    resource: {action: create, successCondition: status.phase == Bound, manifest: "name: {{workflow.name}}"}
    outputs: {parameters: [{name: o, valueFrom: {jsonPath: "{.metadata.name}"}}]}
""")
    assert resource.resource is not None
    assert (resource.kind, resource.resource.manifest) == (StepKind.RESOURCE, f"name: {NAME}")
    assert resource.resource.success_condition == "status.phase == Bound"
    assert resource.output_parameters[0].value_from is not None
    assert resource.output_parameters[0].value_from.json_path == "{.metadata.name}"


def test_labels_tell_which_workflow_a_pod_belongs_to() -> None:
    order = ordered(
        "{name: main, metadata: {labels: {own: '{{workflow.name}}'}}, container: {image: i, command: [x]}}",
        spec="podMetadata: {labels: {pipeline/runid: '{{workflow.uid}}'}, annotations: {a: b}}",
    )
    assert order.labels == {
        "own": NAME,
        "pipeline/runid": "00000000-0000-4000-8000-000000000001",
        "workflows.argoproj.io/workflow": NAME,
        "workflows.argoproj.io/completed": "false",
    }
    assert order.annotations == {"a": "b"}


def test_an_archive_location_of_old_pipelines_prefixes_the_keys() -> None:
    order = ordered("""
    name: main
    archiveLocation: {s3: {bucket: mlpipeline, key: "runs/{{workflow.uid}}/{{pod.name}}"}}
    container: {image: i, command: [x]}
    outputs: {artifacts: [{name: a, path: /a}]}
""")
    s3 = order.output_artifacts[0].s3
    assert s3 is not None
    assert s3["key"] == f"runs/00000000-0000-4000-8000-000000000001/{NAME}/a.tgz"


def test_a_real_pipeline_mounts_the_place_its_producer_wrote_to() -> None:
    text = (PIPELINES / "sdk-1.8.22/testdata-artifact_passing_using_volume.yaml").read_text()
    run = FakeExecutor(
        workflow(text),
        lambda order: Outcome(parameters={each.name: "Data 1" for each in order.output_parameters if not each.value}),
    ).run()
    assert run.turn.phase is Phase.SUCCEEDED
    written = next(mount.sub_path for mount in run.order(".processor").main.mounts if "Output_2" in mount.mount_path)
    (read,) = run.order(".consumer").main.mounts
    assert (read.sub_path, read.read_only) == (written, True)
    assert run.node(".processor").id in written


def test_a_claim_template_is_a_volume_of_every_step() -> None:
    order = ordered(
        "{name: main, container: {image: i, command: [x], volumeMounts: [{name: work, mountPath: /w}]}}",
        spec="volumeClaimTemplates: [{metadata: {name: work}, spec: {resources: {requests: {storage: 1Gi}}}}]",
    )
    (volume,) = order.volumes
    assert volume.persistent_volume_claim is not None
    assert volume.persistent_volume_claim.claim_name == f"{NAME}-work"


def test_a_claim_template_becomes_an_object_of_the_run() -> None:
    run = FakeExecutor(
        workflow("""
spec:
  entrypoint: main
  arguments: {parameters: [{name: size, value: 2Gi}]}
  volumeClaimTemplates:
  - {metadata: {name: work, labels: {a: b}}, spec: {resources: {requests: {storage: "{{workflow.parameters.size}}"}}}}
  templates: [{name: main, container: {image: i, command: [x]}}]
""")
    )
    assert run.state.plan.claims == (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": f"{NAME}-work", "labels": {"a": "b"}},
            "spec": {"resources": {"requests": {"storage": "2Gi"}}},
        },
    )
