"""Real compiled pipelines through composing and the engine's validation, and the cache in front of them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import yaml

from services.run import compose
from services.run.compose import Rules
from services.run.domain import Run, RunId, WorkflowName
from services.run.manifests import Recent, digest_of
from services.run.reading import Runner, validate

PIPELINES = Path(__file__).parents[2] / "pipelines"
REFUSED = {
    "own-invalid-undefined-dependency": "templates.main.tasks.b dependency 'Make folds' not defined",
    "testdata-tolerations": "spec.entrypoint is required",
}
RUN = Run(
    id=RunId("8f2c3d1e-0000-4000-8000-000000000001"),
    name="n",
    experiment_id="e",
    namespace="kubeflow",
    references=(),
    service_account="pipeline-runner",
    manifest_digest="d",
    workflow_name=WorkflowName("w-abcde"),
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
)


def paths() -> list[Path]:
    found = sorted(PIPELINES.rglob("*.yaml"))
    assert found, f"no pipelines in {PIPELINES}"
    return found


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_a_compiled_pipeline_becomes_a_workflow_that_the_engine_takes(path: Path) -> None:
    document = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    text = msgspec.json.encode(document).decode()
    prepared = compose.prepare(text, digest_of(text), Rules())
    workflow = msgspec.json.decode(compose.workflow(prepared, RUN))

    if path.stem in REFUSED:
        with pytest.raises(Exception, match=r".") as refused:
            validate(workflow, Runner())
        assert REFUSED[path.stem] in getattr(refused.value, "reason", "no reason")
        return
    validate(workflow, Runner())
    assert workflow["spec"]["entrypoint"] == document["spec"]["entrypoint"]
    assert [each["name"] for each in workflow["spec"]["templates"]] == [
        each["name"] for each in document["spec"]["templates"]
    ]
    assert "{{workflow.uid}}" not in msgspec.json.encode(workflow).decode()


def test_the_cache_forgets_what_was_used_longest_ago_when_it_is_full() -> None:
    recent = Recent[str](10, len)
    for text in ("aaaa", "bbbb"):
        recent.put(text[0], text)
    assert recent.get("a") == "aaaa"
    recent.put("c", "cccc")
    assert [recent.get(key) for key in "abc"] == ["aaaa", None, "cccc"]


def test_the_cache_does_not_give_itself_up_for_one_large_thing() -> None:
    recent = Recent[str](10, len)
    recent.put("small", "a")
    recent.put("large", "a" * 6)
    assert (recent.get("small"), recent.get("large")) == ("a", None)


def test_putting_twice_weighs_once() -> None:
    recent = Recent[str](10, len)
    for _ in range(5):
        recent.put("a", "aaaa")
    recent.put("b", "bbbb")
    assert (recent.get("a"), recent.get("b")) == ("aaaa", "bbbb")
