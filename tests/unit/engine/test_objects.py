"""The few Kubernetes objects of the embedded engine, on a real directory."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from services.run.engine.embedded.manifest import Resource
from services.run.engine.embedded.objects import ObjectError, Objects, output_of
from tests.support.packages import merge_bomb

NAMESPACE = "kubeflow"


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path)


def act(objects: Objects, action: str, document: Any, *, node: str = "n1", condition: str = "") -> Any:
    text = document if isinstance(document, str) else json.dumps(document)
    resource = Resource(action=action, manifest=text, success_condition=condition)
    return objects.perform(resource, node_id=node, namespace=NAMESPACE)


def claim(name: str | None = "data", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name} if name else {"generateName": "data-"}
    return {"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def secret(**data: Any) -> dict[str, Any]:
    return {"kind": "Secret", "metadata": {"name": "s"}, **data}


@pytest.fixture
def given(tmp_path: Path) -> Objects:
    """Objects of an installation that was given a secret and a config map, the latter as a cluster mounts it."""
    secrets_dir, config_maps_dir = tmp_path / "secrets", tmp_path / "config-maps"
    (secrets_dir / "s").mkdir(parents=True)
    (secrets_dir / "s" / "token").write_bytes(b"\xff\x00given\n")
    version = config_maps_dir / "c" / "..2026_01_02"
    version.mkdir(parents=True)
    (version / "settings.ini").write_text("a = 1")
    (config_maps_dir / "c" / "..data").symlink_to(version.name)
    (config_maps_dir / "c" / "settings.ini").symlink_to("..data/settings.ini")
    return Objects(tmp_path / "data", secrets_dir=secrets_dir, config_maps_dir=config_maps_dir)


def test_what_the_installation_was_given_is_found_byte_for_byte(given: Objects) -> None:
    assert given.secret(NAMESPACE, "s") == {"token": b"\xff\x00given\n"}
    assert given.config_map(NAMESPACE, "c") == {"settings.ini": b"a = 1"}
    assert given.secret(NAMESPACE, "c") is None, "each kind has names of its own"
    assert given.config_map(NAMESPACE, "s") is None


def test_what_a_step_has_made_comes_before_what_was_given(given: Objects) -> None:
    act(given, "create", secret(stringData={"own": "mine"}))
    assert given.secret(NAMESPACE, "s") == {"own": b"mine"}
    act(given, "delete", secret())
    assert given.secret(NAMESPACE, "s") == {"token": b"\xff\x00given\n"}


@pytest.mark.parametrize("name", ["../secrets/s", "..", "", "/etc"])
def test_no_name_leads_out_of_what_was_given(given: Objects, name: str) -> None:
    with pytest.raises(ObjectError, match="is not a valid name of an object"):
        given.config_map(NAMESPACE, name)


def test_a_claim_is_bound_with_what_it_asked_for(objects: Objects) -> None:
    made = act(objects, "create", claim(resources={"requests": {"storage": "3Gi"}}))

    assert made["status"] == {"phase": "Bound", "accessModes": [], "capacity": {"storage": "3Gi"}}
    assert objects.claim(NAMESPACE, "data").is_dir()


def test_an_action_repeated_after_a_crash_finds_its_own_work(objects: Objects) -> None:
    first = act(objects, "create", claim(name=None))

    again = act(objects, "create", claim(name=None))

    assert again == first
    assert first["metadata"]["name"].startswith("data-")


def test_what_another_node_made_already_exists(objects: Objects) -> None:
    act(objects, "create", claim())

    with pytest.raises(ObjectError, match='PersistentVolumeClaim "data" already exists'):
        act(objects, "create", claim(), node="n2")


def test_a_snapshot_keeps_what_the_claim_held_then(objects: Objects) -> None:
    act(objects, "create", claim())
    (objects.claim(NAMESPACE, "data") / "f").write_text("then")
    snapshot = {
        "kind": "VolumeSnapshot",
        "metadata": {"name": "snap"},
        "spec": {"source": {"persistentVolumeClaimName": "data"}},
    }
    made = act(objects, "create", snapshot)
    (objects.claim(NAMESPACE, "data") / "f").write_text("now")

    act(objects, "create", claim("restored", dataSource={"kind": "VolumeSnapshot", "name": "snap"}), node="n3")

    assert made["status"]["readyToUse"] is True
    assert (objects.claim(NAMESPACE, "restored") / "f").read_text() == "then"


def test_secrets_are_read_encoded_or_plain_and_by_nobody_else(objects: Objects, tmp_path: Path) -> None:
    act(objects, "create", secret(data={"a": "aGk="}, stringData={"b": "plain"}))

    assert objects.secret(NAMESPACE, "s") == {"a": b"hi", "b": b"plain"}
    assert stat.S_IMODE((tmp_path / "objects").stat().st_mode) == 0o700


def test_an_object_is_read_as_a_cluster_would_read_it(objects: Objects) -> None:
    made = act(objects, "create", "kind: ConfigMap\nmetadata: {name: c}\ndata: {at: 2020-01-01, n: 1e3, on: 1:30}\n")

    assert made["data"] == {"at": "2020-01-01", "n": 1000, "true": "1:30"}


def test_an_object_that_grows_while_it_is_read_is_refused(objects: Objects) -> None:
    with pytest.raises(ObjectError, match="too large once its aliases are expanded"):
        act(objects, "create", merge_bomb())


def test_an_unknown_secret_is_none(objects: Objects) -> None:
    assert objects.secret(NAMESPACE, "nobody") is None


def test_apply_merges_and_patch_removes_what_is_null(objects: Objects) -> None:
    config = {"kind": "ConfigMap", "metadata": {"name": "c"}}
    act(objects, "apply", {**config, "data": {"a": "1", "b": "2"}})
    act(objects, "apply", {**config, "data": {"b": "3"}})
    act(objects, "patch", {**config, "data": {"a": None}})

    assert objects.config_map(NAMESPACE, "c") == {"b": b"3"}


def test_what_is_deleted_is_gone_and_may_be_deleted_again(objects: Objects) -> None:
    act(objects, "create", claim())
    assert act(objects, "delete", claim()) is None
    assert act(objects, "delete", claim()) is None

    with pytest.raises(ObjectError, match="not found"):
        act(objects, "get", claim())


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".", "UPPER", "a" * 300])
def test_no_name_leads_out_of_the_directory(objects: Objects, name: str) -> None:
    with pytest.raises(ObjectError):
        objects.claim(NAMESPACE, name)


@pytest.mark.parametrize("document", ["[", "[]", "a: !!python/object/apply:os.system [id]", {"kind": "TFJob"}])
def test_what_is_no_object_of_ours_is_refused(objects: Objects, document: Any) -> None:
    with pytest.raises(ObjectError):
        act(objects, "create", document)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("status.phase == Bound", True),
        ("status.phase = Bound", True),
        ("status.phase != Bound", False),
        ("status.nothing != Bound", True),
        ("status.phase == Bound, status.phase == Lost", False),
    ],
)
def test_a_success_condition_holds_now_or_never(objects: Objects, condition: str, holds: bool) -> None:
    if holds:
        act(objects, "create", claim(), condition=condition)
        return
    with pytest.raises(ObjectError, match="is not met"):
        act(objects, "create", claim(), condition=condition)


def test_a_failure_condition_that_holds_comes_before_success(objects: Objects) -> None:
    def create(failure: str) -> None:
        text = json.dumps(claim())
        resource = Resource(
            action="create", manifest=text, success_condition="status.phase == Bound", failure_condition=failure
        )
        objects.perform(resource, node_id="n1", namespace=NAMESPACE)

    create("status.phase == Lost")
    with pytest.raises(ObjectError, match=r"^failure condition .*Bound.* is met$"):
        create("status.phase == Bound")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("{}", '{"a":{"b":[1,"x"]},"d.e":true}'),
        ("{.a.b[0]}", "1"),
        ("{.a.b[1]}", "x"),
        ("{.d\\.e}", "true"),
        ("{.a['b']}", '[1,"x"]'),
    ],
)
def test_an_output_is_a_part_of_the_object(path: str, found: str) -> None:
    assert output_of({"a": {"b": [1, "x"]}, "d.e": True}, path, None) == found


@pytest.mark.parametrize("path", ["{.a.c}", "{.a.b[9]}", "{.a.b.c}", "{.a[0]}", "{.a.b[0][0]}"])
def test_a_path_that_leads_nowhere_is_an_error(path: str) -> None:
    with pytest.raises(ObjectError, match="is not found"):
        output_of({"a": {"b": ["x"]}}, path, None)


@pytest.mark.parametrize("path", ["{..a}", "{.a[?(@.x)]}", "{.a.*}", "{.a[*]}", "{.a[0:1]}", "{a}"])
def test_a_path_to_many_places_is_not_known(path: str) -> None:
    with pytest.raises(ObjectError, match="is not supported by the local engine"):
        output_of({"a": {"b": [1]}}, path, None)


@pytest.mark.parametrize(
    ("jq_filter", "found"),
    [
        (".", '{"a":{"b":[1,"x"]},"d.e":true}'),
        (" .a.b ", '[1,"x"]'),
        (".a.b[1]", "x"),
        (".a.b[-2]", "1"),
        ('.["d.e"]', "true"),
        ('."d.e"', "true"),
        (".a.nothing", "null"),
        (".nothing.at.all", "null"),
    ],
)
def test_a_plain_filter_is_a_path_that_may_lead_to_nothing(jq_filter: str, found: str) -> None:
    assert output_of({"a": {"b": [1, "x"]}, "d.e": True}, None, jq_filter) == found


@pytest.mark.parametrize("jq_filter", [".a | .b", ".a[]", ".a?", "keys", ".a.b | length", ".a as $x | $x", ""])
def test_a_filter_that_is_a_program_is_not_known(jq_filter: str) -> None:
    with pytest.raises(ObjectError, match="is not supported by the local engine"):
        output_of({"a": {"b": [1]}}, None, jq_filter)


def test_what_a_run_made_is_removed_with_it_and_nothing_else(objects: Objects) -> None:
    act(objects, "create", claim("of-the-run"), node="run-1")
    act(objects, "create", claim("of-another"), node="run-2")
    (objects.claim(NAMESPACE, "of-the-run") / "f").write_text("x")

    objects.remove_claims_of("run-1")
    objects.remove_claims_of("run-1")

    with pytest.raises(ObjectError, match="not found"):
        act(objects, "get", claim("of-the-run"))
    assert list(objects.claim(NAMESPACE, "of-the-run").iterdir()) == []
    assert act(objects, "get", claim("of-another"))["metadata"]["name"] == "of-another"
