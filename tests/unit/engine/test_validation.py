import subprocess
import sys
from typing import Any

import msgspec
import pytest

from services.run import reading
from services.run.domain import EngineName
from services.run.engine.embedded.machine import Machine
from services.run.engine.embedded.manifest import ManifestError, Workflow, parse
from services.run.engine.embedded.validation import refuse_unsupported, validate
from services.run.reading import Runner
from tests.support.embedded_runs import workflow
from tests.support.packages import merge_bomb

OTHERS = (Runner(engine=EngineName.ARGO), Runner(engine=EngineName.EXTERNAL))


def dag(tasks: str, more: str = "", spec: str = "") -> Workflow:
    """A DAG with these tasks; `t` takes nothing, `p` takes x and gives o, `a` takes an artifact."""
    return workflow(f"""
spec:
  entrypoint: main
  {spec}
  templates:
  - name: main
    dag:
      tasks: {tasks}
  - {{name: t, container: {{image: i, command: ["true"]}}}}
  - name: p
    inputs: {{parameters: [{{name: x}}]}}
    container: {{image: i, command: [sh, -c, "{{{{inputs.parameters.x}}}}"]}}
    outputs: {{parameters: [{{name: o, valueFrom: {{path: /o}}}}], artifacts: [{{name: art, path: /o}}]}}
  - {{name: a, inputs: {{artifacts: [{{name: in, path: /in}}]}}, container: {{image: i, command: ["true"]}}}}
{more}
""")


def leaf(text: str) -> Workflow:
    return workflow(f"spec: {{entrypoint: main, templates: [{text}]}}")


P = "{name: %s, template: p, arguments: {parameters: [{name: x, value: '%s'}]}%s}"

REFUSED = {
    "templates.main.tasks.b dependency 'Make folds' not defined": dag(
        "[{name: a, template: t}, {name: b, template: t, dependencies: [Make folds]}]"
    ),
    "templates.main dependency cycle detected: a->b->a": dag(
        "[{name: a, template: t, dependencies: [b]}, {name: b, template: t, dependencies: [a]}]"
    ),
    "templates.main must have at least one task": dag("[]"),
    "templates.main.tasks.a template name 'nowhere' undefined": dag("[{name: a, template: nowhere}]"),
    "templates.main.tasks[1].name 'a' is not unique": dag("[{name: a, template: t}, {name: a, template: t}]"),
    "templates.main.tasks[0].name: 'a b' is invalid": dag("[{name: a b, template: t}]"),
    "templates.main.tasks.1a name cannot begin with a digit": dag(
        "[{name: 1a, template: t}, {name: b, template: t, dependencies: [1a]}]"
    ),
    "templates.main.tasks.a inputs.parameters.x was not supplied": dag("[{name: a, template: p}]"),
    "templates.main.tasks.a inputs.artifacts.in was not supplied": dag("[{name: a, template: a}]"),
    "templates.main.tasks.a failed to resolve {{inputs.parameters.no}}": dag(
        f"[{P % ('a', '{{inputs.parameters.no}}', '')}]"
    ),
    "templates.main.tasks.a failed to resolve {{workflow.parameters.no}}": dag(
        f"[{P % ('a', '{{workflow.parameters.no}}', '')}]"
    ),
    "templates.main.tasks.b missing dependency 'a' for parameter 'x'": dag(
        f"[{P % ('a', '1', '')}, {P % ('b', '{{tasks.a.outputs.parameters.o}}', '')}]"
    ),
    "templates.main.tasks.b failed to resolve {{tasks.a.outputs.parameters.no}}": dag(
        f"[{P % ('a', '1', '')}, {P % ('b', '{{tasks.a.outputs.parameters.no}}', ', dependencies: [a]')}]"
    ),
    "templates.main.tasks.a failed to resolve {{item.k}}": dag(f"[{P % ('a', '{{item.k}}', '')}]"),
    "templates.main.tasks.a failed to resolve {{workflow.status}}": dag(f"[{P % ('a', '{{workflow.status}}', '')}]"),
    "templates.main.tasks.a only one of withItems, withParam, withSequence": dag(
        "[{name: a, template: t, withItems: [1], withParam: '[1]'}]"
    ),
    "templates.main cannot use both 'depends' and 'dependencies'": dag(
        "[{name: a, template: t}, {name: b, template: t, depends: a}, {name: c, template: t, dependencies: [a]}]"
    ),
    "templates.main cannot use 'continueOn' when using 'depends'": dag(
        "[{name: a, template: t, continueOn: {failed: true}}, {name: b, template: t, depends: a}]"
    ),
    "templates.main.tasks.b invalid depends expression": dag("[{name: a, template: t}, {name: b, depends: a &&}]"),
    "templates.main.tasks.b depends on 'a', which does not expand": dag(
        "[{name: a, template: t}, {name: b, template: t, depends: a.AnySucceeded}]"
    ),
    "template name 'bye' undefined": dag("[{name: a, template: t}]", spec="onExit: bye"),
    "spec.activeDeadlineSeconds must be a positive integer": dag(
        "[{name: a, template: t}]", spec="activeDeadlineSeconds: -1"
    ),
    "templates[4].name 't' is not unique": dag("[{name: a, template: t}]", more="  - {name: t, container: {image: i}}"),
    "templates.main template type unspecified": leaf("{name: main}"),
    "templates.main multiple template types specified": leaf("{name: main, container: {image: i}, dag: {tasks: []}}"),
    "templates.main.container.image may not be empty": leaf("{name: main, container: {command: [x]}}"),
    "templates.main.inputs.parameters[0].name: 'a b' is invalid": leaf(
        "{name: main, inputs: {parameters: [{name: a b}]}, container: {image: i}}"
    ),
    "templates.main.outputs.parameters.o.valueFrom type unspecified": leaf(
        "{name: main, container: {image: i}, outputs: {parameters: [{name: o}]}}"
    ),
    "templates.main.outputs.parameters.o.valueFrom.path must be specified for container templates": leaf(
        "{name: main, container: {image: i}, outputs: {parameters: [{name: o, valueFrom: {jsonPath: x}}]}}"
    ),
    "templates.main.outputs.artifacts.o.path must be specified for container templates": leaf(
        "{name: main, container: {image: i}, outputs: {artifacts: [{name: o}]}}"
    ),
    "templates.main.container.volumeMounts.v '/in' already mounted in inputs.artifacts.a.path": leaf(
        "{name: main, inputs: {artifacts: [{name: a, path: /in, raw: {data: x}}]},"
        " container: {image: i, volumeMounts: [{name: v, mountPath: /in}]}}"
    ),
    "templates.main.resource.action must be one of": leaf(
        "{name: main, resource: {action: conjure, manifest: 'a: b'}}"
    ),
    "templates.main.resource.manifest must be a valid yaml": leaf(
        "{name: main, resource: {action: create, manifest: 'a: [b'}}"
    ),
    "templates.main.retryStrategy.retryPolicy 'Sometimes' is not a valid RetryPolicy": leaf(
        "{name: main, container: {image: i}, retryStrategy: {retryPolicy: Sometimes}}"
    ),
    "templates.main.retryStrategy.limit 'many'": leaf(
        "{name: main, container: {image: i}, retryStrategy: {limit: many}}"
    ),
    "templates.main.retryStrategy.backoff.duration 'soon' is not a duration": leaf(
        "{name: main, container: {image: i}, retryStrategy: {backoff: {duration: soon}}}"
    ),
    "templates.main.retryStrategy.backoff.maxDuration '1 day' is not a duration": leaf(
        "{name: main, container: {image: i}, retryStrategy: {backoff: {duration: 1, maxDuration: 1 day}}}"
    ),
    "spec.retryStrategy.backoff.factor 'twice' is not a number": dag(
        "[{name: a, template: t}]", spec="retryStrategy: {backoff: {duration: 1, factor: twice}}"
    ),
    "templates.main.suspend.duration 'a while' is not a duration": leaf("{name: main, suspend: {duration: a while}}"),
    "templates.main.steps[0].s failed to resolve {{steps.later.outputs.result}}": leaf(
        "{name: main, steps: [[{name: s, template: u, when: '{{steps.later.outputs.result}} == 1'}],"
        " [{name: later, template: u}]]}, {name: u, script: {image: i, command: [sh], source: x}}"
    ),
    "templates.main failed to resolve {{tasks.a.outputs.result}}": leaf(
        "{name: main, container: {image: i, args: ['{{tasks.a.outputs.result}}']}}"
    ),
    "templates.main.podSpecPatch is not valid JSON": leaf("{name: main, container: {image: i}, podSpecPatch: '{'}"),
    "spec.podSpecPatch is not valid JSON": dag("[{name: a, template: t}]", spec="podSpecPatch: 'containers: []'"),
    "templates.main.podSpecPatch does not fit a container": leaf(
        """{name: main, container: {image: i}, podSpecPatch: '{"containers": [{"name": "main", "command": "x"}]}'}"""
    ),
    "templates.main.container.resources.limits: '1 GB' is not a quantity": leaf(
        "{name: main, container: {image: i, resources: {limits: {memory: 1 GB}}}}"
    ),
    "templates.main.sidecars.s.resources.limits: -1 must not be less than 0": leaf(
        "{name: main, container: {image: i}, sidecars: [{name: s, image: i, resources: {limits: {cpu: -1}}}]}"
    ),
    "templates.main.podSpecPatch: resources.limits: 'much' is not a quantity": leaf(
        """{name: main, container: {image: i}, podSpecPatch: '{"containers": [{"name": "main", "resources":
          {"limits": {"memory": "much"}}}]}'}"""
    ),
    "spec.parallelism must be an integer >= 0": dag("[{name: a, template: t}]", spec="parallelism: -1"),
    "templates.main.parallelism must be an integer >= 0": leaf(
        "{name: main, parallelism: -1, steps: [[{name: s, template: u}]]}, {name: u, container: {image: i}}"
    ),
    "templates.main.initContainers.first.image may not be empty": leaf(
        "{name: main, container: {image: i}, initContainers: [{name: first, command: [x]}]}"
    ),
    "templates.main.sidecars.side.image may not be empty": leaf(
        "{name: main, script: {image: i, source: x}, sidecars: [{name: side}]}"
    ),
    "templates.main.container.volumeMounts.v volume 'v' not found": leaf(
        "{name: main, container: {image: i, volumeMounts: [{name: v, mountPath: /v}]}}"
    ),
    "templates.main.sidecars.side.volumeMounts.w volume 'w' not found": leaf(
        "{name: main, volumes: [{name: v}], container: {image: i, volumeMounts: [{name: v, mountPath: /v}]},"
        " sidecars: [{name: side, image: i, volumeMounts: [{name: w, mountPath: /v}]}]}"
    ),
    "templates.main.initContainers.first.volumeMounts.v '/v/' already mounted in initContainers.first": leaf(
        "{name: main, volumes: [{name: v}, {name: w}], container: {image: i}, initContainers: [{name: first, image: i,"
        " volumeMounts: [{name: w, mountPath: /v}, {name: v, mountPath: /v/}]}]}"
    ),
    "templates.main.outputs.artifacts.a.archive.tar.compressionLevel '11' is not an integer from 0 to 9": leaf(
        "{name: main, container: {image: i},"
        " outputs: {artifacts: [{name: a, path: /a, archive: {tar: {compressionLevel: 11}}}]}}"
    ),
    "spec.volumeClaimTemplates[0].metadata.name: 'A b' is invalid": dag(
        "[{name: a, template: t}]", spec="volumeClaimTemplates: [{metadata: {name: A b}}]"
    ),
    "spec.volumeClaimTemplates[0].metadata.name 'v' is not unique": dag(
        "[{name: a, template: t}]", spec="volumes: [{name: v}]\n  volumeClaimTemplates: [{metadata: {name: v}}]"
    ),
    "templates.main.tasks.a.onExit template name 'nowhere' undefined": dag("[{name: a, template: t, onExit: nowhere}]"),
    "templates.main.tasks.a.onExit has the name of task 'onExit' of template 'named'": dag(
        "[{name: a, template: named, onExit: t}]",
        more="  - {name: named, dag: {tasks: [{name: onExit, template: t}]}}",
    ),
    "spec.onExit has the name of task 'onExit' of template 'main'": dag(
        "[{name: onExit, template: t}]", spec="onExit: t"
    ),
    "templates.main.tasks.a.hooks.exit inputs.parameters.x was not supplied": dag(
        "[{name: a, template: t, hooks: {exit: {template: p}}}]"
    ),
    "templates.main.tasks.a.hooks.exit failed to resolve {{tasks.a.outputs.parameters.no}}": dag(
        "[{name: a, template: t, hooks: {exit: {template: p, arguments: {parameters: [{name: x,"
        " value: '{{tasks.a.outputs.parameters.no}}'}]}}}}]"
    ),
    "templates.main.retryStrategy.expression 'lastRetry.status ==' is invalid": leaf(
        "{name: main, container: {image: i}, retryStrategy: {expression: lastRetry.status ==}}"
    ),
    "spec.retryStrategy.expression failed to resolve lastRetry.phase": dag(
        "[{name: a, template: t}]", spec="retryStrategy: {expression: lastRetry.phase == 'Failed'}"
    ),
    "templates.main.tasks.a.hooks.exit.expression failed to resolve tasks.z.status": dag(
        "[{name: a, template: t, hooks: {exit: {template: t, expression: tasks.z.status == 'Failed'}}}]"
    ),
    "templates.main.outputs.parameters.o.valueFrom.expression failed to resolve tasks.a.outputs.parameters.no": leaf(
        "{name: main, dag: {tasks: [{name: a, template: u}]},"
        " outputs: {parameters: [{name: o, valueFrom: {expression: tasks.a.outputs.parameters.no}}]}},"
        " {name: u, container: {image: i}}"
    ),
    "templates.main.tasks.a failed to resolve {{inputs.parameters.nope}}": dag(
        f"[{P % ('a', '{{=inputs.parameters.nope}}', '')}]"
    ),
    "templates.main.tasks.a missing dependency 'a' for parameter 'x'": dag(f"[{P % ('a', '{{tasks.a.status}}', '')}]"),
    "templates.main.resource.manifest must name its object": leaf(
        "{name: main, resource: {action: create, manifest: '{kind: Secret, metadata: {labels: {a: b}}}'}}"
    ),
    "templates.main.resource.manifest must be a valid yaml mapping": leaf(
        "{name: main, resource: {action: create, manifest: 'kind'}}"
    ),
    "templates.main failed to resolve {{pod.ip}}": leaf("{name: main, container: {image: i, args: ['{{pod.ip}}']}}"),
}


@pytest.mark.parametrize(("reason", "manifest"), REFUSED.items(), ids=list(REFUSED))
def test_an_invalid_workflow_is_refused_by_the_place_and_the_rule(reason: str, manifest: Workflow) -> None:
    with pytest.raises(ManifestError) as caught:
        validate(manifest)
    assert caught.value.reason.startswith(reason)


def test_a_run_needs_an_entrypoint_and_values() -> None:
    nothing = parse({"spec": {}})
    with pytest.raises(ManifestError, match=r"^spec\.entrypoint is required$"):
        validate(nothing)
    without_value = parse(
        {
            "spec": {
                "entrypoint": "main",
                "arguments": {"parameters": [{"name": "p"}]},
                "templates": [{"name": "main", "inputs": {"parameters": [{"name": "p"}]}, "container": {"image": "i"}}],
            }
        }
    )
    with pytest.raises(ManifestError, match=r"^spec\.arguments\.p\.value is required$"):
        validate(without_value)


def test_text_that_merely_looks_like_a_tag_passes() -> None:
    validate(leaf("{name: main, container: {image: i, args: ['{{ user.name }}', '{{$.inputs}}', '{{retries}}']}}"))


def test_a_patch_that_is_json_only_after_its_replacement_passes() -> None:
    validate(
        leaf(
            "{name: main, inputs: {parameters: [{name: n, value: '1'}]}, container: {image: i},"
            ' podSpecPatch: \'{"containers": [{"name": "main", "command": {{inputs.parameters.n}}}]}\'}'
        )
    )


def test_a_hook_may_ask_for_what_its_task_gave_and_the_run_was_given() -> None:
    arguments = "arguments: {parameters: [{name: x, value: '{{tasks.a.outputs.parameters.o}} {{tasks.a.status}}'}]}"
    manifest = dag(
        f"[{P % ('a', '1', f', hooks: {{exit: {{template: p, {arguments}}}}}')}, {{name: b, template: t, onExit: p}}]",
        spec="arguments: {parameters: [{name: x, value: y}]}",
    )
    refuse_unsupported(manifest)
    validate(manifest)


def test_a_claim_template_is_a_declared_volume() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  volumeClaimTemplates: [{metadata: {name: work}, spec: {resources: {requests: {storage: 1Gi}}}}]
  templates: [{name: main, container: {image: i, command: [x], volumeMounts: [{name: work, mountPath: /w}]}}]
""")
    refuse_unsupported(manifest)
    validate(manifest)


def test_what_only_clears_up_after_a_run_elsewhere_is_accepted() -> None:
    manifest = workflow("""
spec:
  entrypoint: main
  podGC: {strategy: OnPodCompletion}
  ttlStrategy: {secondsAfterCompletion: 60}
  templates: [{name: main, container: {image: i, command: [x]}}]
""")
    refuse_unsupported(manifest)
    validate(manifest)


def test_other_text_between_braces_is_no_expression() -> None:
    manifest = leaf("{name: main, container: {image: i, command: ['{{= |s}} {{=<% %>=}} {{={x}}}']}}")
    refuse_unsupported(manifest)
    validate(manifest)


def test_the_exit_handler_may_ask_how_the_run_ended() -> None:
    validate(
        workflow("""
spec:
  entrypoint: t
  onExit: bye
  templates:
  - {name: t, container: {image: i}}
  - {name: bye, container: {image: i, args: ["{{workflow.status}} {{workflow.failures}}"]}}
""")
    )


def test_an_ancestor_counts_as_a_dependency() -> None:
    first, last = P % ("a", "1", ""), P % ("c", "{{tasks.a.outputs.parameters.o}}", ", dependencies: [b]")
    validate(dag(f"[{first}, {{name: b, template: t, dependencies: [a]}}, {last}]"))


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"spec": {"templates": "x"}}, "$.spec.templates"),
        ({"spec": {"templates": [{"name": "m", "container": {"args": [1]}}]}}, "container.args"),
        ({"spec": {"parallelism": "3"}}, "parallelism"),
    ],
)
def test_a_part_of_the_wrong_shape_is_named(document: dict[str, Any], path: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(document)
    assert path in caught.value.reason


def test_scalars_of_arguments_become_text_and_nulls_are_absent() -> None:
    parsed = parse(
        {
            "metadata": {"labels": {"on": True}},
            "spec": {
                "arguments": {"parameters": [{"name": "a", "value": 1.0}, {"name": "b", "value": None}]},
                "templates": [{"name": "m", "container": None, "retryStrategy": {"limit": 2}, "inputs": None}],
            },
        }
    )
    assert [each.value for each in parsed.spec.arguments.parameters] == ["1", None]
    assert parsed.metadata.labels == {"on": "true"}
    strategy = parsed.spec.templates[0].retry_strategy
    assert strategy is not None
    assert strategy.limit == "2"


C = "container: {image: i, command: [x]}"

UNSUPPORTED = {
    "spec.workflowTemplateRef": workflow("spec: {workflowTemplateRef: {name: x}}"),
    "spec.synchronization": workflow("spec: {synchronization: {mutex: {name: m}}}"),
    "templates.main memoize": leaf(f"{{name: main, {C}, memoize: {{key: k}}}}"),
    "templates.main synchronization": leaf(f"{{name: main, {C}, synchronization: {{mutex: {{name: m}}}}}}"),
    "templates.main daemon": leaf(f"{{name: main, {C}, daemon: true}}"),
    "templates.main containerSet": leaf("{name: main, containerSet: {containers: []}}"),
    "templates.main data": leaf("{name: main, data: {source: {}}}"),
    "templates.main http": leaf("{name: main, http: {url: x}}"),
    "templates.main suspend without duration": leaf("{name: main, suspend: {}}"),
    "templates.main expression function sprig.trim": leaf(
        "{name: main, container: {image: i, command: ['{{=sprig.trim(workflow.name)}}']}}"
    ),
    "templates.main expression {{=inputs.parameters.x | upper}} (unexpected '| upper')": leaf(
        "{name: main, container: {image: i, command: ['{{=inputs.parameters.x | upper}}']}}"
    ),
    "expression function sprig.trim": dag(
        "[{name: a, template: t}]",
        spec="volumes: [{name: v, persistentVolumeClaim: {claimName: '{{=sprig.trim(workflow.name)}}'}}]",
    ),
    "templates.main parameter 'o' valueFrom.expression": leaf(
        f"{{name: main, {C}, outputs: {{parameters: [{{name: o, valueFrom: {{expression: '1'}}}}]}}}}"
    ),
    "templates.main artifact 'a' git": leaf(
        f"{{name: main, {C}, inputs: {{artifacts: [{{name: a, path: /a, git: {{}}}}]}}}}"
    ),
    "templates.main artifact 'a' http": leaf(
        f"{{name: main, {C}, outputs: {{artifacts: [{{name: a, path: /a, http: {{url: x}}}}]}}}}"
    ),
    "templates.main artifact 'a' http.auth": leaf(
        f"{{name: main, {C}, inputs: {{artifacts: [{{name: a, path: /a, http: {{url: x, auth: {{}}}}}}]}}}}"
    ),
    "templates.main artifact 'a' http.headers.valueFrom": leaf(
        f"{{name: main, {C}, inputs: {{artifacts: [{{name: a, path: /a, http: {{url: x, headers: "
        "[{name: h, valueFrom: {secretKeyRef: {name: s, key: k}}}]}}]}}"
    ),
    "templates.main volume 'v' of type projected": leaf(
        f"{{name: main, {C}, volumes: [{{name: v, projected: {{}}}}]}}"
    ),
    "templates.main volume 'v' of type hostPath": leaf(
        f"{{name: main, {C}, volumes: [{{name: v, hostPath: {{path: /}}}}]}}"
    ),
    "volume 'v' of type hostPath": dag("[{name: a, template: t}]", spec="volumes: [{name: v, hostPath: {path: /}}]"),
    "templates.main container env 'CPUS' valueFrom.resourceFieldRef": leaf(
        "{name: main, container: {image: i, command: [x], env: [{name: CPUS, valueFrom: {resourceFieldRef: {}}}]}}"
    ),
    "templates.main sidecars.side env 'CPUS' valueFrom.resourceFieldRef": leaf(
        f"{{name: main, {C}, sidecars: [{{name: side, image: i, command: [x],"
        " env: [{name: CPUS, valueFrom: {resourceFieldRef: {}}}]}]}"
    ),
    "templates.main artifact 'a' azure": leaf(
        f"{{name: main, {C}, inputs: {{artifacts: [{{name: a, path: /a, azure: {{}}}}]}}}}"
    ),
    "templates.main artifact 'a' archive.zip": leaf(
        f"{{name: main, {C}, outputs: {{artifacts: [{{name: a, path: /a, archive: {{zip: {{}}}}}}]}}}}"
    ),
    "templates.main archiveLocation.gcs": leaf(f"{{name: main, {C}, archiveLocation: {{gcs: {{key: k}}}}}}"),
    "templates.main resource kind TFJob": leaf(
        "{name: main, resource: {action: create, manifest: '{kind: TFJob, metadata: {name: t}}'}}"
    ),
    "templates.main parameter 'o' valueFrom.jqFilter .a[]": leaf(
        "{name: main, resource: {action: create, manifest: '{kind: Secret, metadata: {name: s}}'},"
        " outputs: {parameters: [{name: o, valueFrom: {jqFilter: '.a[]'}}]}}"
    ),
    "templates.main parameter 'o' valueFrom.jsonPath {.a[*]}": leaf(
        "{name: main, resource: {action: create, manifest: '{kind: Secret, metadata: {name: s}}'},"
        " outputs: {parameters: [{name: o, valueFrom: {jsonPath: '{.a[*]}'}}]}}"
    ),
    "templates.main tasks.a templateRef": dag("[{name: a, templateRef: {name: x, template: y}}]"),
    "templates.main tasks.a hooks.running": dag("[{name: a, template: t, hooks: {running: {template: t}}}]"),
    "templates.main tasks.a hooks.exit.templateRef": dag(
        "[{name: a, template: t, hooks: {exit: {templateRef: {name: x, template: y}}}}]"
    ),
    "spec.hooks": dag("[{name: a, template: t}]", spec="hooks: {exit: {template: t}}"),
}


@pytest.mark.parametrize(("feature", "manifest"), UNSUPPORTED.items(), ids=list(UNSUPPORTED))
def test_a_feature_of_other_engines_is_refused_by_name(feature: str, manifest: Workflow) -> None:
    with pytest.raises(ManifestError) as caught:
        refuse_unsupported(manifest)
    assert caught.value.reason == f"{feature} is not supported by the local engine"


@pytest.mark.parametrize("manifest", UNSUPPORTED.values(), ids=list(UNSUPPORTED))
def test_a_feature_of_other_engines_is_named_before_what_is_missing_without_it(manifest: Workflow) -> None:
    with pytest.raises(ManifestError, match="is not supported by the local engine"):
        reading.validate(msgspec.to_builtins(manifest), Runner())


@pytest.mark.parametrize("feature", [feature for feature in UNSUPPORTED if feature.startswith("templates.")])
def test_a_feature_of_other_engines_is_none_of_our_business_where_another_engine_runs_it(feature: str) -> None:
    for runner in OTHERS:
        reading.validate(msgspec.to_builtins(UNSUPPORTED[feature]), runner)


def test_what_no_engine_can_run_is_refused_for_every_engine() -> None:
    manifest = msgspec.to_builtins(dag("[{name: a, template: t, dependencies: [nowhere]}]"))
    for runner in (Runner(), *OTHERS):
        with pytest.raises(ManifestError, match="'nowhere' not defined"):
            reading.validate(manifest, runner)


@pytest.mark.parametrize("kind", ["containerSet: {}", "data: {}", "http: {}", "plugin: {}", "templateRef: {name: x}"])
def test_outputs_of_foreign_template_kinds_are_checked_by_the_rules_of_leaves(kind: str) -> None:
    with pytest.raises(ManifestError, match="valueFrom type unspecified"):
        validate(leaf(f"{{name: main, {kind}, outputs: {{parameters: [{{name: o}}]}}}}"))


def test_a_container_needs_a_command_where_its_image_is_not_run() -> None:
    manifest = leaf("{name: main, container: {image: cowsay}}")
    with pytest.raises(ManifestError, match=r"^templates\.main\.container image entrypoint unknown: cowsay$"):
        refuse_unsupported(manifest)
    refuse_unsupported(manifest, Machine(runs_images=True))


def test_a_container_needs_no_command_where_the_operator_says_what_its_image_runs() -> None:
    machine = Machine(entrypoints={"docker/whalesay": ("cowsay",), "docker/whalesay:9": ("moo",)})
    for image in ("docker/whalesay", "docker/whalesay:latest", "docker/whalesay:9", "docker/whalesay@sha256:abc"):
        refuse_unsupported(leaf(f"{{name: main, container: {{image: '{image}'}}}}"), machine)
    for image in ("whalesay", "host:5000/docker/whalesay"):
        with pytest.raises(ManifestError, match="image entrypoint unknown"):
            refuse_unsupported(leaf(f"{{name: main, container: {{image: '{image}'}}}}"), machine)


@pytest.mark.parametrize(
    ("path", "is_allowed"),
    [
        ("/srv/data", True),
        ("/srv/data/of/somebody", True),
        ("{{workflow.name}}", True),
        ("/srv/database", False),
        ("/srv/data/../keys", False),
        ("srv/data", False),
        ("/", False),
    ],
)
def test_a_path_of_the_host_is_mounted_where_the_operator_allows_it(path: str, is_allowed: bool) -> None:
    machine = Machine(host_paths=("/srv/data", "/mnt/x"))
    volume = f"volumes: [{{name: v, hostPath: {{path: '{path}'}}}}]"
    of_template = leaf(f"{{name: main, {C}, {volume}}}")
    of_run = dag("[{name: a, template: t}]", spec=volume)
    for manifest, place in ((of_template, "templates.main "), (of_run, "")):
        if is_allowed:
            refuse_unsupported(manifest, machine)
        else:
            with pytest.raises(ManifestError) as caught:
                refuse_unsupported(manifest, machine)
            reason = f"{place}volume 'v': {path} is no host path that HEADRACE_HOST_PATHS allows"
            assert caught.value.reason == reason


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "VolumeSnapshot", "Secret", "ConfigMap", "'{{item}}'"])
def test_emulated_resource_kinds_and_kinds_known_later_pass(kind: str) -> None:
    refuse_unsupported(leaf(f'{{name: main, resource: {{action: create, manifest: "kind: {kind}"}}}}'))


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (merge_bomb(), "the document is too large once its aliases are expanded"),
        ("[" * 100_000, "the document is nested too deeply"),
        ("kind: Secret\n---\nkind: Secret", "another document follows the first one"),
    ],
    ids=["bomb", "depth", "two documents"],
)
def test_an_object_that_no_engine_should_read_is_refused(manifest: str, reason: str) -> None:
    document = {"entrypoint": "main", "templates": [resource_template(manifest)]}
    with pytest.raises(ManifestError, match=r"^templates\.main\.resource\.manifest must be a valid yaml: ") as caught:
        validate(parse({"spec": document}))
    assert reason in caught.value.reason


def test_an_object_may_hold_a_date_that_never_was() -> None:
    manifest = "kind: Secret\nmetadata: {name: s, annotations: {when: 2020-13-45}}"
    reading.validate({"spec": {"entrypoint": "main", "templates": [resource_template(manifest)]}}, Runner())


def resource_template(manifest: str) -> dict[str, Any]:
    return {"name": "main", "resource": {"action": "create", "manifest": manifest}}


@pytest.mark.parametrize("source", ["jqFilter: .metadata.name", "jsonPath: '{.data.{{inputs.parameters.k}}}'"])
def test_plain_paths_into_a_resource_pass(source: str) -> None:
    manifest = leaf(
        "{name: main, inputs: {parameters: [{name: k, value: x}]},"
        " resource: {action: create, manifest: '{kind: Secret, metadata: {name: s}}'},"
        f" outputs: {{parameters: [{{name: o, valueFrom: {{{source}}}}}]}}}}"
    )
    refuse_unsupported(manifest)
    validate(manifest)


def test_dates_are_text_and_items_keep_their_types() -> None:
    parsed = workflow("""
spec:
  entrypoint: main
  arguments: {parameters: [{name: day, value: 2026-11-23}]}
  templates:
  - {name: main, dag: {tasks: [{name: a, template: c, withItems: [1, null, {k: null, 2: [x]}, true, "1"]}]}}
  - {name: c, container: {image: i, args: [2026-11-23]}}
""")
    assert parsed.spec.arguments.parameters[0].value == "2026-11-23"
    assert parsed.spec.templates[1].container is not None
    assert parsed.spec.templates[1].container.args == ("2026-11-23",)
    assert parsed.spec.templates[0].tasks[0].with_items == [1, None, {"k": None, "2": ["x"]}, True, "1"]


@pytest.mark.parametrize("key", ["spec", "withItems"])
def test_a_document_without_end_is_refused(key: str) -> None:
    document: dict[str, Any] = {key: []}
    inner = document[key]
    for _ in range(100_000):
        inner.append([])
        inner = inner[0]
    with pytest.raises(ManifestError, match="nested deeper"):
        parse(document)


FIRST_AT_ONCE = """
import sys, threading
from services.run.engine.embedded.manifest import parse

sys.setswitchinterval(1e-5)
together = threading.Barrier(8)
step = {"name": "step", "container": {"image": "i", "command": ["true"]}}
document = {"spec": {"entrypoint": "step", "templates": [step]}}

def first() -> None:
    together.wait()
    parse(document)

threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_the_first_manifests_of_a_process_may_come_at_the_same_moment() -> None:
    ended = [subprocess.run([sys.executable, "-c", FIRST_AT_ONCE], timeout=60).returncode for _ in range(3)]

    assert ended == [0, 0, 0]
