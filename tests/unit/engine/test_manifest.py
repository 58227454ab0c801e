"""What parsing makes of a document beyond its shape."""

from __future__ import annotations

import pytest

from services.run.engine.embedded.manifest import ManifestError, Workflow, parse
from services.run.engine.embedded.validation import validate
from tests.support.embedded_runs import workflow


def with_defaults(defaults: str, template: str) -> Workflow:
    return workflow(f"""
spec:
  entrypoint: main
  templateDefaults: {defaults}
  templates:
  - {{name: main, {template}}}
""")


def test_a_template_stands_before_the_defaults() -> None:
    parsed = with_defaults(
        "{name: x, activeDeadlineSeconds: 60, retryStrategy: {limit: 2, retryPolicy: Always},"
        " metadata: {labels: {a: default, b: default}}}",
        "container: {image: i}, activeDeadlineSeconds: 5, retryStrategy: {limit: 0}, metadata: {labels: {a: own}}",
    )
    (template,) = parsed.spec.templates
    assert (template.name, template.active_deadline_seconds) == ("main", "5")
    assert template.metadata.labels == {"a": "own", "b": "default"}
    assert template.retry_strategy is not None
    assert (template.retry_strategy.limit, template.retry_strategy.retry_policy) == ("0", "Always")


def test_lists_of_named_things_are_merged_by_their_names_and_others_replaced() -> None:
    parsed = with_defaults(
        "{container: {command: [default], args: [a, b], env: [{name: A, value: d}, {name: B, value: d}],"
        " volumeMounts: [{name: d, mountPath: /v}]}, volumes: [{name: d}, {name: e}],"
        " sidecars: [{name: s, image: d, command: [d]}]}",
        "container: {image: i, args: [c], env: [{name: B, value: own}, {name: C, value: own}],"
        " volumeMounts: [{name: o, mountPath: /v}]}, volumes: [{name: o}], sidecars: [{name: s, image: own}]",
    )
    (template,) = parsed.spec.templates
    assert template.container is not None
    assert (template.container.command, template.container.args) == (("default",), ("c",))
    assert [(each.name, each.value) for each in template.container.env] == [("A", "d"), ("B", "own"), ("C", "own")]
    assert [(each.name, each.mount_path) for each in template.container.volume_mounts] == [("o", "/v")]
    assert [each.name for each in template.volumes] == ["d", "e", "o"]
    assert [(each.image, each.command) for each in template.sidecars] == [("own", ("d",))]


def test_defaults_do_not_give_a_template_another_kind() -> None:
    parsed = workflow("""
spec:
  entrypoint: main
  templateDefaults: {container: {image: d, command: [x]}, dag: {failFast: false}}
  templates:
  - {name: main, dag: {tasks: [{name: a, template: leaf}]}}
  - {name: leaf, container: {args: [y]}}
""")
    main, leaf = parsed.spec.templates
    assert (main.container, leaf.dag) == (None, None)
    assert main.dag is not None
    assert main.dag.fail_fast is False
    assert leaf.container is not None
    assert leaf.container.image == "d"
    validate(parsed)


@pytest.mark.parametrize("defaults", ["[]", "x", "{metadata: []}", "{container: {env: [{name: [x]}]}}"])
def test_defaults_of_the_wrong_shape_are_refused(defaults: str) -> None:
    with pytest.raises(ManifestError):
        with_defaults(defaults, "container: {image: i}")


def test_defaults_give_no_template_to_a_workflow_without_one() -> None:
    assert parse({"spec": {"templateDefaults": {"container": {}}}}).spec.templates == ()
