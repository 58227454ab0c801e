"""What only the Argo engine has to promise: about its cluster's outages, about objects that others change or delete,
and about what is given to the cluster when. Argo itself is played by hand."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.run.engine import NameTaken, NodeId, Submission, WorkflowName
from services.run.engine.argo import ArgoEngine, shapes
from services.run.engine.argo.cluster import Cluster
from services.run.engine.argo.submitting import Submitting
from services.run.engine.shards import ALL, shard_of
from services.run.reading import MOST_WORKFLOW_BYTES
from shared.errors import Unavailable
from tests.contract.engine.argo_by_hand import ArgoByHand, argo_by_hand, node
from tests.contract.engine.manifests import c, workflow
from tests.contract.engine.recorder import Recorder, Run, new_run
from tests.support.eventually import eventually
from tests.support.kubernetes import FakeKubernetes

SMALL = workflow(c("true"))
FAST = Submitting(rate_per_second=1000, burst=1000)


@pytest.fixture
async def fake() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes.serving() as fake:
        yield fake


@pytest.fixture
async def argo(fake: FakeKubernetes) -> AsyncIterator[ArgoByHand]:
    async with argo_by_hand(fake) as argo:
        yield argo


class Working:
    """An engine at work, and who records what it reports."""

    def __init__(self, engine: ArgoEngine, recorder: Recorder) -> None:
        self.engine = engine
        self.recorder = recorder

    async def hold(self, run: Run) -> Run:
        """A run that this engine's controller has on record already."""
        self.recorder.runs[run.name] = run
        return run

    async def begin(self, manifest: Any = SMALL, **how: Any) -> Run:
        return await self.recorder.begin(manifest, **how)

    async def begin_and_take(self) -> Run:
        """A run whose object is known to be there."""
        return await self.recorder.until(await self.begin(), lambda run: bool(run.history))


@contextlib.asynccontextmanager
async def working(
    fake: FakeKubernetes, folder: Path, *runs: Run, limits: Submitting = FAST, **how: Any
) -> AsyncIterator[Working]:
    cluster = Cluster.from_settings(kubeconfig=str(fake.kubeconfig(folder)))
    told: dict[str, Any] = {"namespaces": ("kubeflow",), "most_workflow_bytes": MOST_WORKFLOW_BYTES} | how
    engine = ArgoEngine(cluster, limits=limits, **told)
    recorder = Recorder(engine)
    recorder.runs.update({run.name: run for run in runs})
    tasks = [asyncio.create_task(engine.run()), asyncio.create_task(recorder.follow())]
    try:
        yield Working(engine, recorder)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await engine.close()


@pytest.fixture
async def at_work(fake: FakeKubernetes, tmp_path: Path) -> AsyncIterator[Working]:
    async with working(fake, tmp_path) as at_work:
        yield at_work


def asked(fake: FakeKubernetes, method: str) -> int:
    return fake.requests.of(method, "/workflows")


async def until_asked(fake: FakeKubernetes, method: str, times: int) -> None:
    async def enough() -> bool:
        return asked(fake, method) >= times

    await eventually(enough)


async def finish(argo: ArgoByHand, at_work: Working, run: Run, phase: str = "Succeeded") -> None:
    await argo.shows(run, phase, node(run, phase=phase))
    await at_work.recorder.end_of(run)


# -- submit ------------------------------------------------------------------------------------------------------------


async def test_a_run_becomes_an_object_that_says_whose_it_is(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()

    found = await argo.until_there(run)

    metadata = found["metadata"]
    assert metadata["labels"] == {"pipeline/runid": run.run_id, "headrace.dev/shard": str(shard_of(run.run_id))}
    assert metadata["annotations"] == {
        "headrace.dev/attempt": "1",
        "headrace.dev/made-as": f"kubeflow/{run.name}",
    }
    assert metadata["uid"] != run.run_id
    assert found["spec"] == run.workflow["spec"]
    assert "status" not in found


async def test_an_object_whose_creation_was_not_answered_is_ours(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    fake.lose_answers(1, methods={"POST"})
    run = await at_work.begin()

    await until_asked(fake, "POST", 1)
    await finish(argo, at_work, run)

    assert run.phase == "Succeeded"


async def test_a_name_that_somebody_elses_object_has_ends_the_run_and_harms_no_object(
    argo: ArgoByHand, at_work: Working
) -> None:
    run = await at_work.hold(new_run(SMALL))
    metadata = {"name": run.name, "namespace": "kubeflow", "labels": {"pipeline/runid": "another"}}
    await argo.create({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}})

    await at_work.engine.submit(run.submission())
    await at_work.recorder.end_of(run)

    assert (run.phase, run.message) == ("Error", f"a workflow named {run.name} runs for somebody else")
    found = await argo.object(run)
    assert found is not None
    assert found["metadata"]["labels"] == {"pipeline/runid": "another"}


async def test_a_name_whose_object_is_being_deleted_is_waited_for(argo: ArgoByHand, at_work: Working) -> None:
    run, next_run = await at_work.hold(new_run(SMALL)), await at_work.hold(new_run(SMALL))
    metadata = {"name": run.name, "namespace": "kubeflow", "finalizers": ["a/b"], "labels": {"pipeline/runid": "gone"}}
    await argo.create({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}})
    await argo.delete(run)

    await at_work.engine.submit(run.submission())
    why = f"not submitted yet: an earlier workflow named {run.name} is being deleted"
    await at_work.recorder.until(run, lambda run: (run.phase, run.message) == ("Pending", why))
    await at_work.engine.submit(next_run.submission())
    await argo.until_there(next_run)
    await argo.change(run, {"metadata": {"finalizers": None}})
    await finish(argo, at_work, run)

    assert run.phase == "Succeeded"


async def test_names_that_are_waited_for_keep_nobody_else_waiting(argo: ArgoByHand, at_work: Working) -> None:
    """As where whatever has to clear up before an object may go has broken down."""
    waiting = [await at_work.hold(new_run(SMALL)) for _ in range(20)]
    for run in waiting:
        metadata = {"name": run.name, "namespace": "kubeflow", "finalizers": ["a/b"]}
        await argo.create({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": {}})
        await argo.delete(run)
        await at_work.engine.submit(run.submission())

    await finish_another(argo, at_work)
    await at_work.engine.terminate(waiting[0].name)
    await at_work.recorder.end_of(waiting[0])

    assert (waiting[0].phase, waiting[0].message) == ("Failed", "terminated")


async def test_a_name_that_is_known_to_be_taken_is_refused_at_once(at_work: Working) -> None:
    run = await at_work.begin()

    with pytest.raises(NameTaken):
        await at_work.engine.submit(new_run(SMALL, name=run.name).submission())


async def test_an_object_that_was_made_without_our_labels_is_taken_in(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.hold(new_run(SMALL))
    document = shapes.new_object(run.submission())
    del document["metadata"]["labels"]["headrace.dev/shard"]
    del document["metadata"]["annotations"]["headrace.dev/made-as"]
    await argo.create(document)

    await at_work.engine.submit(run.submission())
    await finish(argo, at_work, run)

    assert run.phase == "Succeeded"


async def test_a_workflow_that_is_too_large_ends_before_anything_is_sent(fake: FakeKubernetes, tmp_path: Path) -> None:
    large = workflow(c("true", volumes=[{"name": "x" * 3000}]))
    async with working(fake, tmp_path, most_workflow_bytes=2000) as at_work:
        run = await at_work.recorder.end_of(await at_work.begin(large))

    assert run.phase == "Error"
    size = len(msgspec.json.encode(shapes.new_object(run.submission())))
    assert run.message == (
        f"the workflow takes {size} bytes, and the cluster holds 2000 of one object (HEADRACE_MOST_WORKFLOW_BYTES): "
        "hand large values on as artifacts, or make several pipelines of it"
    )
    assert asked(fake, "POST") == 0


async def test_a_workflow_that_is_too_large_for_the_server_ends_with_its_words(
    fake: FakeKubernetes, at_work: Working
) -> None:
    fake.most_bytes = 1000
    run = await at_work.recorder.end_of(await at_work.begin(workflow(c("true", volumes=[{"name": "x" * 3000}]))))

    assert run.phase == "Error"
    assert "too large" in run.message
    assert "hand large values on as artifacts" in run.message


@pytest.mark.parametrize("status", [400, 422])
async def test_a_workflow_that_the_server_refuses_ends(fake: FakeKubernetes, at_work: Working, status: int) -> None:
    fake.refuse(status, 1, methods={"POST"})
    run = await at_work.recorder.end_of(await at_work.begin())

    assert run.phase == "Error"
    assert run.message.startswith("the cluster refuses the workflow: ")


async def test_a_namespace_that_is_not_there_ends_the_run(fake: FakeKubernetes, tmp_path: Path) -> None:
    run = new_run(SMALL)
    run.workflow["metadata"]["namespace"] = "nowhere"
    cluster = Cluster.from_settings(kubeconfig=str(fake.kubeconfig(tmp_path)))
    for engine, reason in (
        (ArgoEngine(cluster, most_workflow_bytes=MOST_WORKFLOW_BYTES), "there is no namespace nowhere"),
        (
            ArgoEngine(cluster, namespaces=("kubeflow",), most_workflow_bytes=MOST_WORKFLOW_BYTES),
            "the namespace nowhere is none whose workflows are driven",
        ),
    ):
        work = asyncio.create_task(engine.run())
        await engine.submit(run.submission())
        async with asyncio.timeout(20):
            observation = await anext(engine.observe())
        assert (observation.phase, observation.message) == ("Error", reason)
        work.cancel()
        await asyncio.wait([work])
    await cluster.close()


@pytest.mark.parametrize("status", [403, 429, 500, 503])
async def test_a_server_that_does_not_take_it_now_is_asked_again(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working, status: int
) -> None:
    fake.refuse(status, 3, methods={"POST"})
    run = await at_work.begin()

    await argo.until_there(run)

    assert asked(fake, "POST") == 4


async def test_a_run_whose_submission_breaks_down_is_not_known_and_can_be_submitted_again(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = asyncio.Event()

    async def create(cluster: Cluster, namespace: str, body: bytes) -> None:
        broken.set()
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(Cluster, "create", create)
        run = await at_work.begin()
        async with asyncio.timeout(20):
            await broken.wait()

    async def is_unknown() -> bool:
        return run.run_id not in await at_work.engine.known()

    await eventually(is_unknown)
    await at_work.engine.submit(run.submission())
    await finish(argo, at_work, run)
    assert run.phase == "Succeeded"


# -- the queue ---------------------------------------------------------------------------------------------------------


async def test_a_run_without_room_says_where_it_stands_and_begins_when_another_ends(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    limits = Submitting(rate_per_second=100, burst=100, in_flight=1)
    async with working(fake, tmp_path, limits=limits) as at_work:
        first, second, third = [await at_work.begin() for _ in range(3)]
        said = "in the queue: the limit of concurrent runs is 1 (HEADRACE_MOST_RUNS)"
        await at_work.recorder.until(second, lambda run: (run.phase, run.message) == ("Pending", f"position 1 {said}"))
        await at_work.recorder.until(third, lambda run: run.message == f"position 2 {said}")
        assert await argo.object(second) is None
        assert await at_work.engine.known() == {first.run_id, second.run_id, third.run_id}

        await finish(argo, at_work, first)
        await argo.until_there(second)
        await at_work.recorder.until(second, lambda run: (run.phase, run.message) == ("Pending", ""))
        await at_work.recorder.until(third, lambda run: run.message == f"position 1 {said}")


async def test_workflows_are_given_no_faster_than_the_rate(fake: FakeKubernetes, tmp_path: Path) -> None:
    async with working(fake, tmp_path, limits=Submitting(rate_per_second=0.001, burst=3)) as at_work:
        runs = [await at_work.begin() for _ in range(5)]
        said = "in the queue: 0.001 runs a second are started (HEADRACE_SUBMISSIONS_PER_SECOND)"
        await at_work.recorder.until(runs[4], lambda run: run.message == f"position 2 {said}")

        await until_asked(fake, "POST", 3)
        assert asked(fake, "POST") == 3
        assert at_work.engine.queued == 2


async def test_a_run_that_waits_takes_little_memory_however_large_its_workflow_is(
    fake: FakeKubernetes, tmp_path: Path
) -> None:
    templates = {f"step-{number}": c(f"echo {number}; sleep 1") for number in range(200)}
    text = msgspec.json.encode(new_run(workflow(c("true"), templates=templates)).submission())
    async with working(fake, tmp_path, limits=Submitting(rate_per_second=0.001, burst=1)) as at_work:
        await at_work.begin()
        await until_asked(fake, "POST", 1)
        runs = [await at_work.hold(new_run({})) for _ in range(50)]
        tracemalloc.start()
        for run in runs:
            submission = msgspec.json.decode(text, type=Submission)
            whose = {"workflow_name": run.name, "run_id": run.run_id}
            await at_work.engine.submit(msgspec.structs.replace(submission, **whose))
        del submission
        taken_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert taken_bytes / 50 < len(text) / 3


async def test_experiments_take_turns(fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path) -> None:
    async with working(fake, tmp_path, limits=Submitting(rate_per_second=100, burst=100, in_flight=1)) as at_work:
        busy = await at_work.begin(experiment_id="a")
        await argo.until_there(busy)
        runs = {each: await at_work.begin(experiment_id=each[0]) for each in ("a1", "a2", "b1")}
        order = []
        ended = busy
        for _ in runs:
            await finish(argo, at_work, ended)

            async def begun() -> str:
                return "".join([name for name, run in runs.items() if name not in order and await argo.object(run)])

            order.append(await eventually(begun))
            ended = runs[order[-1]]

    assert order == ["a1", "b1", "a2"]


async def test_what_waits_for_the_cluster_says_so_and_goes_when_it_is_back(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    await at_work.engine.known()
    await fake.stop()
    run = await at_work.begin()
    await at_work.recorder.until(run, lambda run: run.message.startswith("not submitted yet: "))
    assert "The Kubernetes API does not answer." in run.message

    await fake.start()
    await finish(argo, at_work, run)

    assert (run.phase, run.message) == ("Succeeded", "")


async def test_a_retry_in_the_queue_outlives_a_listing_that_began_before_it(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path, limits=Submitting(rate_per_second=0.001, burst=2)) as at_work:
        other, run = await at_work.begin(), await at_work.begin()
        await argo.until_there(other)
        fake.refuse(503, 10_000, methods={"PATCH"})
        await finish(argo, at_work, run, "Failed")

        # The listing has to look for the other run meanwhile.
        await asyncio.gather(at_work.engine.listed("kubeflow", set()), at_work.engine.submit(run.submission(attempt=2)))

        assert at_work.engine.queued == 1


async def test_a_workflow_that_became_another_engines_while_it_was_created_takes_no_room(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path, limits=Submitting(rate_per_second=1000, burst=1000, in_flight=1)) as at_work:
        await at_work.engine.known()
        fake.delay(0.5)
        given_up = await at_work.begin()
        await until_asked(fake, "POST", 1)
        await at_work.engine.own(ALL - {shard_of(given_up.run_id)})
        fake.delay(0)
        await argo.until_there(given_up)
        kept = new_run(SMALL)
        while shard_of(kept.run_id) == shard_of(given_up.run_id):
            kept = new_run(SMALL)
        await at_work.hold(kept)

        await at_work.engine.submit(kept.submission())

        await argo.until_there(kept)


# -- observe and recorded ----------------------------------------------------------------------------------------------


async def test_only_what_has_changed_is_reported(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()
    await argo.shows(run, "Running", node(run), node(run, ".a"))
    await at_work.recorder.running(run, ".a")
    await argo.shows(run, "Running", node(run), node(run, ".a", "Succeeded"), node(run, ".b"))
    await at_work.recorder.running(run, ".b")

    last = run.history[-1]
    assert {each["displayName"] for each in last.nodes} == {"a", "b"}
    assert not last.is_complete


async def test_a_node_that_disappears_is_gone_from_the_record(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()
    await argo.shows(run, "Running", node(run), node(run, ".a"), node(run, ".b"))
    await at_work.recorder.running(run, ".a", ".b")

    await argo.shows(run, "Running", node(run), node(run, ".b"))
    await at_work.recorder.until(run, lambda run: set(run.phases()) == {"", ".b"})

    assert run.history[-1].is_complete


async def test_what_happens_until_an_observation_is_recorded_is_told_at_once(
    argo: ArgoByHand, at_work: Working
) -> None:
    run = await at_work.begin_and_take()
    at_work.recorder.holds.add(run.name)
    await argo.shows(run, "Running", node(run), node(run, ".a"))
    await at_work.recorder.running(run, ".a")
    for name in (".b", ".c"):
        await argo.shows(run, "Running", node(run), node(run, ".a", "Succeeded"), node(run, name))
    await finish_another(argo, at_work)
    assert len(run.history) == 2

    at_work.recorder.holds.clear()
    await at_work.engine.recorded(run.history[-1])
    await at_work.recorder.running(run, ".c")

    assert [set(run.phases()), len(run.history)] == [{"", ".a", ".c"}, 3]


async def finish_another(argo: ArgoByHand, at_work: Working) -> None:
    """By then everything before has been seen, too: one watch tells all."""
    await finish(argo, at_work, await at_work.begin())


async def test_an_end_is_marked_once_it_is_recorded(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin_and_take()
    at_work.recorder.holds.add(run.name)
    await finish(argo, at_work, run)
    await finish_another(argo, at_work)
    found = await argo.object(run)
    assert found is not None
    assert shapes.PERSISTED not in found["metadata"]["labels"]

    # Argo writes into what is over, too.
    await argo.change(run, {"metadata": {"labels": {"workflows.argoproj.io/workflow-archiving-status": "Archived"}}})
    await at_work.engine.recorded(run.history[-1])

    await argo.until_marked(run)
    assert run.run_id not in await at_work.engine.known()


async def test_an_end_that_was_recorded_and_not_marked_is_told_and_marked_by_the_next(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path) as first:
        run = await first.begin()
        await argo.until_there(run)
        await argo.shows(run, "Succeeded", node(run, phase="Succeeded"))
        fake.refuse(503, 1000, methods={"PATCH"})
        await first.recorder.end_of(run)
        await until_asked(fake, "PATCH", 3)
    fake.relent()
    run.finished_at = None

    async with working(fake, tmp_path, run) as second:
        await second.recorder.end_of(run)
        await argo.until_marked(run)


async def test_a_late_mark_does_not_hit_a_retry(fake: FakeKubernetes, argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin_and_take()
    at_work.recorder.holds.add(run.name)
    await finish(argo, at_work, run, "Failed")
    fake.refuse(503, 3, methods={"PATCH"}, path=run.name)
    at_work.recorder.holds.clear()
    await at_work.engine.recorded(run.history[-1])

    run.reopen()
    await at_work.engine.submit(run.submission())
    await argo_shows_attempt(argo, run, 2)
    await finish(argo, at_work, run)

    assert (run.phase, run.attempt) == ("Succeeded", 2)


async def argo_shows_attempt(argo: ArgoByHand, run: Run, attempt: int) -> dict[str, Any]:
    async def reached() -> dict[str, Any] | None:
        found = await argo.object(run)
        return found if found and found["metadata"]["annotations"][shapes.ATTEMPT] == str(attempt) else None

    found = await eventually(reached)
    assert found is not None
    return found


async def test_nodes_that_argo_has_packed_are_reported(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()
    packed = shapes.compressed({"status": {"nodes": {run.name: node(run), "a": node(run, ".a")}}})["status"]
    await argo.shows(run, "Running", **packed)

    await at_work.recorder.running(run, "", ".a")


async def test_nodes_that_cannot_be_read_for_a_while_are_said_to_be_so_and_shown_as_soon_as_they_can(
    argo: ArgoByHand, at_work: Working, caplog: pytest.LogCaptureFixture
) -> None:
    run = await at_work.begin()
    await argo.shows(run, "Running", node(run), node(run, ".a"))
    await at_work.recorder.running(run, ".a")
    for message in ("once", "twice"):
        found = await argo.until_there(run)
        status = {"phase": "Running", "nodes": None, "compressedNodes": "KLUv/SQA", "message": message}
        await argo.change(run, {"status": found["status"] | status})
        await at_work.recorder.until(run, lambda run: run.message == message)  # noqa: B023 - awaited at once
    assert set(run.phases()) == {"", ".a", ".not-shown"}
    assert ["cannot be read" in each.getMessage() for each in caplog.records].count(True) == 1

    await argo.shows(run, "Running", node(run), node(run, ".b"))
    await at_work.recorder.running(run, ".b")
    assert set(run.phases()) == {"", ".b"}


async def test_a_run_whose_nodes_argo_keeps_elsewhere_ends_all_the_same(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()
    await argo.shows(run, "Running", offloadNodeStatusVersion="fnv:1")
    await at_work.recorder.running(run, ".not-shown")
    await argo.shows(run, "Failed", offloadNodeStatusVersion="fnv:2", message="why")
    await at_work.recorder.end_of(run)
    assert (run.phase, run.message) == ("Failed", "why")
    assert run.phases() == {".not-shown": "Failed"}
    assert run.node(".not-shown")["message"] == (
        "The steps of this run are not shown: Argo keeps them in a database of its own (nodeStatusOffLoad)"
    )

    run.reopen()
    await at_work.engine.submit(run.submission())
    await at_work.recorder.end_of(run)

    assert run.phase == "Error"
    assert "Argo keeps its nodes in a database of its own" in run.message


# -- outages -----------------------------------------------------------------------------------------------------------


async def test_what_happens_while_a_watch_is_cut_is_seen_after(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    run = await at_work.begin()
    await argo.until_there(run)
    for number in range(5):
        fake.cut_watches()
        await argo.shows(run, "Running", node(run), node(run, f".n{number}"))
        await at_work.recorder.running(run, f".n{number}")
    fake.cut_watches()
    await finish(argo, at_work, run)


@pytest.mark.parametrize("answer_with_status", [False, True])
async def test_a_version_that_is_forgotten_is_followed_by_a_new_list(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working, answer_with_status: bool
) -> None:
    run, lost = await at_work.begin(), await at_work.begin()
    await argo.until_there(run)
    await argo.until_there(lost)
    for number in range(3):
        fake.cut_watches()
        await argo.shows(run, "Running", node(run), node(run, f".n{number}"))
        fake.compact(answer_with_status=answer_with_status)
        await at_work.recorder.running(run, f".n{number}")
    await argo.delete(lost)
    fake.compact(answer_with_status=answer_with_status)
    fake.cut_watches()

    await at_work.recorder.end_of(lost)
    assert lost.history[-1].is_vanished
    await finish(argo, at_work, run)


async def test_a_server_that_was_away_is_taken_up_where_it_was_left(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    run = await at_work.begin()
    await argo.shows(run, "Running", node(run), node(run, ".a"))
    await at_work.recorder.running(run, ".a")
    await fake.stop()
    with pytest.raises(Unavailable):
        await at_work.engine.terminate(run.name)
    with pytest.raises(Unavailable):
        await at_work.engine.erase(new_run(SMALL).run_id)
    with pytest.raises(Unavailable):
        await at_work.engine.check()

    await fake.start()
    await finish(argo, at_work, run)
    await argo.until_marked(run)


async def test_a_list_whose_next_page_is_forgotten_is_an_outage(fake: FakeKubernetes, at_work: Working) -> None:
    for seek in (at_work.engine.erase, lambda name: at_work.engine.terminate(WorkflowName(name))):
        fake.refuse(410, 1, methods={"GET"}, path="nobody")
        with pytest.raises(Unavailable):
            await seek("nobody")
        await seek("nobody")


async def test_a_token_that_is_replaced_in_its_file_is_read_again(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    cluster = Cluster.from_settings(kubeconfig=str(fake.kubeconfig(tmp_path, token_file=True)))
    await cluster.list_pods("kubeflow", labels="")
    (tmp_path / "token").write_text(f"{fake.rotate_token()}\n")

    await cluster.list_pods("kubeflow", labels="")
    fake.expire_token()
    with pytest.raises(Unavailable):
        await cluster.list_pods("kubeflow", labels="")
    await cluster.close()


# -- objects that others delete or mark --------------------------------------------------------------------------------


async def test_an_object_that_is_deleted_behind_our_back_is_a_loss(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()
    await argo.shows(run, "Running", node(run), node(run, ".a"))
    await at_work.recorder.running(run, ".a")

    await argo.delete(run)
    await at_work.recorder.end_of(run)

    last = run.history[-1]
    assert (last.phase, last.is_vanished) == ("Error", True)
    assert run.run_id not in await at_work.engine.known()


async def test_a_server_that_does_not_know_workflows_for_a_moment_loses_no_run(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    """As one that has just started, or what stands before it: not the object is missing but all that it knows of."""
    run = await at_work.begin()
    await argo.until_there(run)
    fake.refuse(404, 1, methods={"GET"}, path=f"/workflows/{run.name}")

    with pytest.raises(Unavailable):
        await at_work.engine.listed("kubeflow", set())
    await finish(argo, at_work, run)

    assert run.phase == "Succeeded"


async def test_an_end_that_was_seen_stands_though_its_object_is_deleted(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin_and_take()
    at_work.recorder.holds.add(run.name)
    await argo.shows(run, "Running", node(run), node(run, ".a"))
    await at_work.recorder.running(run, ".a")
    await argo.shows(run, "Succeeded", node(run, phase="Succeeded"), node(run, ".a", "Succeeded"))
    await argo.delete(run)
    await finish_another(argo, at_work)

    at_work.recorder.holds.clear()
    await at_work.engine.recorded(run.history[-1])
    await at_work.recorder.end_of(run)

    assert (run.phase, run.history[-1].is_vanished) == ("Succeeded", False)
    assert run.phases() == {"": "Succeeded", ".a": "Succeeded"}


@pytest.mark.parametrize(
    "changed", [{"headrace.dev/shard": None}, {"headrace.dev/shard": "x"}, {"pipeline/runid": None}]
)
async def test_an_object_that_has_lost_our_labels_gets_them_again(
    argo: ArgoByHand, at_work: Working, changed: dict[str, str | None]
) -> None:
    run = await at_work.begin_and_take()

    await argo.change(run, {"metadata": {"labels": changed}})
    await finish(argo, at_work, run)

    assert run.phase == "Succeeded"


async def test_an_object_that_somebody_else_has_marked_is_no_loss(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin_and_take()

    await argo.change(run, {"metadata": {"labels": {shapes.PERSISTED: "true"}}})
    await finish_another(argo, at_work)

    assert run.run_id not in await at_work.engine.known()
    assert [each.phase for each in run.history] == ["Pending"]


async def test_a_run_that_had_begun_and_has_no_object_any_more_is_lost_and_does_not_run_again(
    fake: FakeKubernetes, at_work: Working
) -> None:
    run = await at_work.hold(new_run(SMALL))
    begun = {"started_at": datetime.now(UTC), "nodes": (node(run), node(run, ".a", "Succeeded"))}

    await at_work.engine.submit(run.submission(**begun))
    await at_work.recorder.end_of(run)

    assert run.history[-1].is_vanished
    assert asked(fake, "POST") == 0


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_run_that_was_taken_and_has_no_object_any_more_is_lost_and_does_not_run_again(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path, attempt: int
) -> None:
    """Argo may have brought it to its end and cleared it away while nobody looked."""
    async with working(fake, tmp_path) as first:
        run = await first.hold(new_run(SMALL))
        run.attempt = attempt
        await first.engine.submit(run.submission())
        await first.recorder.until(run, lambda run: bool(run.history))
    assert [each.is_taken for each in run.history] == [True]
    await argo.delete(run)
    async with working(fake, tmp_path, run) as second:
        await second.engine.submit(run.submission(is_taken=True))
        await second.recorder.end_of(run)

    assert (run.phase, run.history[-1].is_vanished) == ("Error", True)
    assert "while no controller watched it" in run.message
    assert asked(fake, "POST") == 1


async def test_that_a_run_is_taken_is_told_once(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin_and_take()
    await argo.shows(run, "Running", node(run))
    await at_work.recorder.running(run, "")
    await finish(argo, at_work, run)

    assert [(each.phase, each.is_taken) for each in run.history] == [
        ("Pending", True),
        ("Running", False),
        ("Succeeded", False),
    ]


async def test_an_open_run_whose_object_is_marked_already_ends_as_the_object_says(
    argo: ArgoByHand, at_work: Working
) -> None:
    run = await at_work.hold(new_run(SMALL))
    await argo.create(shapes.new_object(run.submission()))
    await argo.change(run, {"metadata": {"labels": {shapes.PERSISTED: "true"}}})
    await argo.shows(run, "Failed", node(run, phase="Failed"), message="why")
    await finish_another(argo, at_work)

    await at_work.engine.submit(run.submission())
    await at_work.recorder.end_of(run)

    assert (run.phase, run.message) == ("Failed", "why")


# -- objects that others copy ------------------------------------------------------------------------------------------


def copied(found: dict[str, Any], *annotations: str, **elsewhere: str) -> dict[str, Any]:
    """With all labels, and these annotations."""
    kept = {key: value for key, value in found["metadata"]["annotations"].items() if key in annotations}
    metadata = {"labels": found["metadata"]["labels"], "annotations": kept, "namespace": "kubeflow", **elsewhere}
    return {"apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": metadata, "spec": found["spec"]}


@pytest.mark.parametrize("annotations", [(), (shapes.ATTEMPT, shapes.MADE_AS)], ids=["labels", "annotations"])
async def test_a_copy_of_a_runs_object_is_nobodys(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path, annotations: tuple[str, ...]
) -> None:
    """As whoever resubmits a workflow makes one: with the labels that say whose it is, and which shard's."""
    async with working(fake, tmp_path) as first:
        run = await first.begin()
        copy = Run(name=WorkflowName(f"{run.name}-again"), run_id=run.run_id, workflow={})
        await argo.create(copied(await argo.until_there(run), *annotations, name=copy.name))
        await argo.shows(copy, "Failed", node(copy, phase="Failed"))
        await argo.shows(run, "Running", node(run), node(run, ".a"))
        await first.recorder.running(run, ".a")
    async with working(fake, tmp_path, run) as second:
        assert await second.engine.known() == {run.run_id}
        await argo.delete(run)
        await second.recorder.end_of(run)
        assert run.history[-1].is_vanished, "the copy does not stand for it"
        assert await second.engine.known() == set()

        await second.engine.terminate(copy.name)
        await second.engine.erase(run.run_id)

    found = await argo.object(copy)
    assert found is not None
    assert "activeDeadlineSeconds" not in found["spec"]


async def test_a_copy_of_a_finished_object_does_not_outlive_its_time_with_it(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path, ttl_seconds=0) as at_work:
        run = await at_work.begin()
        await finish(argo, at_work, run)
        copy = Run(name=WorkflowName(f"{run.name}-again"), run_id=run.run_id, workflow={})
        await argo.create(copied(await argo.until_marked(run), shapes.MADE_AS, shapes.RECORDED_AT, name=copy.name))
        await argo.delete(run)

        assert await at_work.engine.leftovers() == {}


async def test_a_copy_in_another_namespace_is_nobodys(fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path) -> None:
    (await argo.client.post("/api/v1/namespaces", {"metadata": {"name": "elsewhere"}})).ok()
    elsewhere = "/apis/argoproj.io/v1alpha1/namespaces/elsewhere/workflows"
    async with working(fake, tmp_path, namespaces=()) as at_work:
        run = await at_work.begin_and_take()
        found = await argo.until_there(run)
        copy = copied(found, shapes.MADE_AS, name=run.name, namespace="elsewhere") | {"status": {"phase": "Failed"}}
        (await argo.client.post(elsewhere, copy)).ok()

        await finish_another(argo, at_work)
        await at_work.engine.erase(run.run_id)

        assert [each.phase for each in run.history] == ["Pending"]
        assert await argo.object(run) is None
        (await argo.client.get(f"{elsewhere}/{run.name}")).ok()


# -- retry -------------------------------------------------------------------------------------------------------------


async def failed(argo: ArgoByHand, at_work: Working) -> Run:
    """A run with a step that is done and one that failed, each with its pod."""
    run = await at_work.begin()
    a, b = node(run, ".a", "Succeeded"), node(run, ".b", "Failed")
    await argo.until_there(run)
    for each in (a, b):
        await argo.create_pod(run, each["id"])
    await argo.shows(run, "Failed", node(run, phase="Failed", children=[a["id"], b["id"]]), a, b, message="why")
    await at_work.recorder.end_of(run)
    await argo.until_marked(run)
    run.reopen()
    return run


async def test_a_retried_run_goes_on_in_its_object_without_what_failed(argo: ArgoByHand, at_work: Working) -> None:
    run = await failed(argo, at_work)

    await at_work.engine.submit(run.submission())
    found = await argo_shows_attempt(argo, run, 2)

    assert found["status"]["phase"] == "Running"
    assert "message" not in found["status"]
    assert set(found["status"]["nodes"]) == {run.name, node(run, ".a")["id"]}
    assert "workflows.argoproj.io/completed" not in found["metadata"]["labels"]
    assert shapes.PERSISTED not in found["metadata"]["labels"]
    assert await argo.pods() == {node(run, ".a")["id"]}
    await argo.shows(run, "Running", node(run), node(run, ".a", "Succeeded"), node(run, ".b"))
    await at_work.recorder.running(run, ".b")
    await finish(argo, at_work, run)
    assert (run.phase, run.message) == ("Succeeded", "")


async def test_a_retry_that_was_not_answered_is_not_begun_twice(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    run = await failed(argo, at_work)
    fake.lose_answers(1, methods={"PUT"})

    await at_work.engine.submit(run.submission())
    await argo_shows_attempt(argo, run, 2)
    await argo.shows(run, "Running", node(run), node(run, ".a", "Succeeded"), node(run, ".c"))
    await at_work.recorder.running(run, ".c")
    await finish_another(argo, at_work)

    assert set(run.phases()) == {"", ".a", ".c"}
    found = await argo.object(run)
    assert found is not None
    assert found["metadata"]["annotations"][shapes.ATTEMPT] == "2"


async def test_a_retry_that_is_submitted_by_another_engine_is_the_same_retry(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path) as first:
        run = await failed(argo, first)
        await first.engine.submit(run.submission())
        await argo_shows_attempt(argo, run, 2)
    written = (await argo_shows_attempt(argo, run, 2))["metadata"]["generation"]
    async with working(fake, tmp_path, run) as second:
        await second.engine.known()
        await second.engine.submit(run.submission())
        await finish_another(argo, second)
        assert (await argo_shows_attempt(argo, run, 2))["metadata"]["generation"] == written
        await finish(argo, second, run)

    assert run.phase == "Succeeded"


async def test_a_retry_meets_somebody_who_writes_at_the_same_time(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    run = await failed(argo, at_work)
    fake.refuse(409, 2, methods={"PUT"})

    await at_work.engine.submit(run.submission())

    await argo_shows_attempt(argo, run, 2)


async def test_a_run_is_retried_though_its_object_is_gone(argo: ArgoByHand, at_work: Working) -> None:
    run = await failed(argo, at_work)
    await argo.delete(run)

    await at_work.engine.submit(run.submission())
    found = await argo_shows_attempt(argo, run, 2)

    assert found["status"]["phase"] == "Running"
    assert {each["phase"] for each in found["status"]["nodes"].values()} == {"Running", "Succeeded"}
    await finish(argo, at_work, run)


async def test_a_retry_whose_steps_had_begun_and_whose_object_is_gone_is_lost(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    run = await at_work.hold(new_run(SMALL))
    run.attempt = 2

    nodes = (node(run), node(run, ".a"))
    await at_work.engine.submit(run.submission(nodes=nodes, started_at=datetime.now(UTC)))
    await at_work.recorder.end_of(run)

    assert run.history[-1].is_vanished
    assert asked(fake, "POST") == 0


async def test_a_retry_with_more_nodes_than_an_object_holds_is_packed(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path, most_workflow_bytes=6000) as at_work:
        run = await at_work.hold(new_run(SMALL))
        run.attempt = 2
        run.nodes = {each["id"]: each for each in [node(run), *(node(run, f".n{n}", "Succeeded") for n in range(50))]}
        await at_work.engine.submit(run.submission(started_at=datetime.now(UTC)))

        found = await argo_shows_attempt(argo, run, 2)

    assert "nodes" not in found["status"]
    assert len(shapes.read(msgspec.json.encode(found)).nodes()) == 51


# -- terminate and erase -----------------------------------------------------------------------------------------------


async def test_a_run_is_stopped_by_a_deadline_of_nothing(argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()
    await argo.until_there(run)

    await at_work.engine.terminate(run.name)

    found = await argo.object(run)
    assert found is not None
    assert found["spec"]["activeDeadlineSeconds"] == 0
    assert found["spec"]["templates"] == run.workflow["spec"]["templates"]


async def test_a_stop_meets_somebody_who_writes_at_the_same_time(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    run = await at_work.begin()
    await argo.until_there(run)
    fake.refuse(409, 2, methods={"PATCH"})

    await at_work.engine.terminate(run.name)

    found = await argo.object(run)
    assert found is not None
    assert found["spec"]["activeDeadlineSeconds"] == 0


@pytest.mark.parametrize("status", [400, 422])
async def test_an_object_that_the_server_lets_nobody_change_or_delete_keeps_others_from_nothing(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working, status: int
) -> None:
    run = await at_work.begin()
    await argo.until_there(run)
    fake.refuse(status, 2, methods={"PATCH", "DELETE"}, path=f"/workflows/{run.name}")

    await at_work.engine.terminate(run.name)
    await at_work.engine.erase(run.run_id)

    assert await argo.object(run) is not None
    await finish_another(argo, at_work)


async def test_a_run_in_the_queue_is_terminated_without_an_object(fake: FakeKubernetes, tmp_path: Path) -> None:
    async with working(fake, tmp_path, limits=Submitting(rate_per_second=0.001, burst=1)) as at_work:
        await at_work.begin()
        await until_asked(fake, "POST", 1)
        queued = await at_work.begin()
        new = await at_work.hold(new_run(SMALL))
        await at_work.engine.submit(new.submission(is_terminating=True))
        await at_work.engine.terminate(queued.name)

        for run in (queued, new):
            await at_work.recorder.end_of(run)
            assert (run.phase, run.message, run.nodes) == ("Failed", "terminated", {})
        assert asked(fake, "POST") == 1


async def test_a_run_whose_creation_was_not_answered_is_stopped(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    await at_work.engine.known()
    fake.refuse(503, 1000, methods={"GET"}, path="/workflows")
    fake.cut_watches()
    fake.lose_answers(1, methods={"POST"})
    run = await at_work.begin()
    await until_asked(fake, "POST", 2)
    fake.relent()

    await at_work.engine.terminate(run.name)

    async def stops() -> bool:
        found = await argo.object(run)
        return found is not None and found["spec"].get("activeDeadlineSeconds") == 0

    await eventually(stops)
    assert not run.is_final


async def test_whoever_does_not_know_a_run_can_stop_and_erase_it(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working, tmp_path: Path
) -> None:
    run = await at_work.begin()
    await argo.until_there(run)
    other = ArgoEngine(
        Cluster.from_settings(kubeconfig=str(fake.kubeconfig(tmp_path))), most_workflow_bytes=MOST_WORKFLOW_BYTES
    )

    await other.terminate(run.name)
    found = await argo.object(run)
    assert found is not None
    assert found["spec"]["activeDeadlineSeconds"] == 0
    await other.erase(run.run_id)
    assert await argo.object(run) is None
    await other.close()


async def test_an_erased_run_is_not_heard_of_again(fake: FakeKubernetes, argo: ArgoByHand, at_work: Working) -> None:
    run = await at_work.begin()
    await argo.shows(run, "Running", node(run), node(run, ".a"))
    await at_work.recorder.running(run, ".a")
    told = len(run.history)

    await at_work.engine.erase(run.run_id)

    assert await argo.object(run) is None
    await finish_another(argo, at_work)
    assert len(run.history) == told
    assert await at_work.engine.known() == set()
    await at_work.engine.submit(run.submission(nodes=(), started_at=None))
    assert await at_work.engine.known() == {run.run_id}
    await argo.until_there(run)


async def test_a_retry_is_not_erased_with_an_earlier_attempt(argo: ArgoByHand, at_work: Working) -> None:
    run = await failed(argo, at_work)
    await at_work.engine.submit(run.submission())
    await argo_shows_attempt(argo, run, 2)

    await at_work.engine.erase(run.run_id, up_to_attempt=1)

    assert await argo.object(run) is not None
    await at_work.engine.erase(run.run_id, up_to_attempt=2)
    assert await argo.object(run) is None


async def test_an_object_that_somebody_has_go_on_after_its_recorded_end_is_left_to_them_until_it_is_over(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(fake, tmp_path, ttl_seconds=0) as at_work:
        run = await at_work.begin_and_take()
        await finish(argo, at_work, run, "Failed")
        await argo.until_marked(run)

        labels = {"workflows.argoproj.io/completed": None, "workflows.argoproj.io/phase": "Running"}
        await argo.change(run, {"metadata": {"labels": labels}, "status": {"phase": "Running", "finishedAt": None}})
        for _ in range(3):
            assert await at_work.engine.leftovers() == {}
        await argo.shows(run, "Succeeded", node(run, phase="Succeeded"))
        await finish_another(argo, at_work)

        assert [run.phase, len(run.history)] == ["Failed", 2]
        assert run.run_id not in await at_work.engine.known()
        said = f"workflow {run.name} goes on after its end was recorded"
        assert [said in each.getMessage() for each in caplog.records].count(True) == 1
        assert (await at_work.engine.leftovers())[run.run_id] == 1


async def test_objects_that_have_outlived_their_time_are_left_over(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path, ttl_seconds=0) as at_work:
        run, running = await at_work.begin(), await at_work.begin()
        await argo.until_there(running)
        await finish(argo, at_work, run)
        await argo.until_marked(run)

        patient = ArgoEngine(
            Cluster.from_settings(kubeconfig=str(fake.kubeconfig(tmp_path))),
            ttl_seconds=3600,
            most_workflow_bytes=MOST_WORKFLOW_BYTES,
        )
        assert await patient.leftovers() == {}
        await patient.close()
        assert await at_work.engine.leftovers() == {run.run_id: 1}
        await at_work.engine.erase(run.run_id, up_to_attempt=1)
        assert await at_work.engine.leftovers() == {}
        assert await argo.object(running) is not None


# -- shards, and engines in turn ---------------------------------------------------------------------------------------


async def test_an_engine_drives_the_runs_of_its_shards_alone(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    runs = [new_run(SMALL) for _ in range(2)]
    while shard_of(runs[0].run_id) == shard_of(runs[1].run_id):
        runs[1] = new_run(SMALL)
    mine, others = runs
    async with working(fake, tmp_path, *runs) as at_work:
        for run in runs:
            await at_work.engine.submit(run.submission())
            await argo.until_there(run)
        await at_work.engine.own(frozenset({shard_of(mine.run_id)}))
        assert await at_work.engine.known() == {mine.run_id}
        await argo.shows(others, "Running", node(others), node(others, ".a"))
        await finish(argo, at_work, mine)
        assert others.phases() == {}

        await at_work.engine.own(ALL)
        assert others.run_id in await at_work.engine.known()
        await at_work.recorder.running(others, ".a")
        await at_work.engine.own(frozenset())
        assert await at_work.engine.known() == set()


async def test_who_gives_a_run_up_in_the_middle_of_its_retry_does_nothing_more_to_it(
    fake: FakeKubernetes, argo: ArgoByHand, at_work: Working
) -> None:
    """Its next engine begins the same retry anew, and the new pods are called like the old ones."""
    run = await at_work.begin()
    steps = [node(run, f".{number}", "Failed") for number in range(8)]
    await argo.shows(run, "Failed", node(run, phase="Failed"), *steps)
    await at_work.recorder.end_of(run)
    await argo.until_marked(run)
    run.reopen()
    fake.delay(0.1)
    await at_work.engine.submit(run.submission())

    async def has_begun() -> bool:
        return fake.requests.of("DELETE", "/pods") > 0

    await eventually(has_begun)
    await at_work.engine.own(ALL - {shard_of(run.run_id)})
    done = fake.requests.of("DELETE", "/pods")
    kept = new_run(SMALL)
    while shard_of(kept.run_id) == shard_of(run.run_id):
        kept = new_run(SMALL)
    await at_work.hold(kept)
    await at_work.engine.submit(kept.submission())
    await finish(argo, at_work, kept)

    assert fake.requests.of("DELETE", "/pods") == done < len(steps)
    left = await argo.until_there(run)
    assert left["metadata"]["annotations"][shapes.ATTEMPT] == "1"


async def test_a_second_engine_goes_on_with_what_a_first_one_has_begun(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path) as first:
        begun, ended = await first.begin(), await first.begin()
        await argo.shows(begun, "Running", node(begun), node(begun, ".a"), node(begun, ".b"))
        await first.recorder.running(begun, ".a")
        await argo.until_there(ended)
    await argo.shows(begun, "Running", node(begun), node(begun, ".a", "Succeeded"), node(begun, ".c"))
    await argo.shows(ended, "Failed", node(ended, phase="Failed"), message="why")

    async with working(fake, tmp_path, begun, ended) as second:
        await second.recorder.end_of(ended)
        await second.recorder.running(begun, ".c")
        assert set(begun.phases()) == {"", ".a", ".c"}, "what was on record beyond is gone"
        assert await second.engine.known() == {begun.run_id}
        await finish(argo, second, begun)

    assert (ended.phase, ended.message, begun.phase) == ("Failed", "why", "Succeeded")
    assert asked(fake, "POST") == 2


async def test_nothing_is_known_before_everything_is_listed(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    async with working(fake, tmp_path) as first:
        run = await first.begin()
        await argo.until_there(run)
    await fake.stop()
    async with working(fake, tmp_path, run) as second:
        known = asyncio.create_task(second.engine.known())
        done, _ = await asyncio.wait([known], timeout=0.1)
        assert not done
        await fake.start()
        assert await asyncio.wait_for(known, 20) == {run.run_id}


async def test_a_start_over_many_finished_workflows_reads_only_those_that_are_open(
    fake: FakeKubernetes, argo: ArgoByHand, tmp_path: Path
) -> None:
    finished, unmarked, open_ = [[new_run(SMALL) for _ in range(number)] for number in (30, 110, 20)]
    documents = []
    for run in (*finished, *unmarked, *open_):
        document = shapes.new_object(run.submission())
        if run not in open_:
            root = node(run, phase="Succeeded")
            document["status"] = {"phase": "Succeeded", "finishedAt": root["finishedAt"], "nodes": {run.name: root}}
        if run in finished:
            document["metadata"]["labels"][shapes.PERSISTED] = "true"
        documents.append(document)
    await asyncio.gather(*map(argo.create, documents))

    async with working(fake, tmp_path, *finished, *unmarked, *open_) as at_work:
        await at_work.engine.known()
        for run in unmarked:
            await at_work.recorder.end_of(run)
        assert await at_work.engine.known() == {run.run_id for run in open_}
        await argo.until_marked(unmarked[-1])

    assert not any(run.history for run in finished)
    assert {each.phase for run in open_ for each in run.history} <= {"Pending"}
    assert all(len(run.history) == 1 for run in unmarked)


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pod_name", ["{id}", "{workflow}-a-{hash}"])
async def test_the_log_of_a_step_is_its_pods_whichever_way_it_is_named(
    argo: ArgoByHand, at_work: Working, pod_name: str
) -> None:
    run = await at_work.begin()
    a = node(run, ".a")
    pod = pod_name.format(id=a["id"], workflow=run.name, hash=a["id"].rpartition("-")[2])
    await argo.create_pod(run, pod)
    await argo.write_log(pod, "one\ntwo\n")

    async def text(*, follow: bool = False, offset: int = 0) -> str:
        logs = at_work.engine.logs(run.name, NodeId(a["id"]), follow=follow, offset=offset)
        return b"".join([chunk async for chunk in logs]).decode()

    assert await text() == "one\ntwo\n"
    assert await text(offset=2) == "e\ntwo\n"
    assert await text(offset=100) == ""
    following = asyncio.create_task(text(follow=True, offset=4))
    await argo.write_log(pod, "three\n")
    await argo.end_pod(pod)
    assert await asyncio.wait_for(following, 20) == "two\nthree\n"
    logs = at_work.engine.logs(run.name, NodeId(f"{run.name}-0"), follow=True)
    assert [chunk async for chunk in logs] == []


# -- about and check ---------------------------------------------------------------------------------------------------


async def test_an_engine_says_what_its_cluster_is(at_work: Working) -> None:
    about = await at_work.engine.about()

    assert (about.name, about.weaker) == ("argo", None)
    assert about.runtime.startswith("Kubernetes v1.")


async def test_what_the_account_may_not_do_is_said_all_at_once(fake: FakeKubernetes, at_work: Working) -> None:
    denied = {("patch", "workflows", ""), ("get", "pods", "log")}
    fake.deny(lambda asked: (asked["verb"], asked["resource"], asked.get("subresource", "")) in denied)

    with pytest.raises(Unavailable) as refused:
        await at_work.engine.check()

    assert refused.value.message == (
        "The run controller's account may not patch workflows in namespace kubeflow, "
        "get pods/log in namespace kubeflow."
    )
    fake.deny(lambda _: False)
    await at_work.engine.check()


async def test_a_cluster_without_argo_is_said_to_be_one(argo: ArgoByHand, at_work: Working) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workflows.argoproj.io"
    (await argo.client.delete(path)).ok()

    with pytest.raises(Unavailable, match="install Argo Workflows"):
        await at_work.engine.check()


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"exec": {"command": "aws"}}, "from a program (exec), which is not supported"),
        ({"auth-provider": {"name": "gcp"}}, "from an auth-provider, which is not supported"),
        ({"auth-provider": {"name": "oidc"}}, "from an auth-provider, which is not supported"),
    ],
)
async def test_credentials_that_others_would_have_to_bring_are_refused_in_words(
    fake: FakeKubernetes, tmp_path: Path, user: dict[str, Any], said: str
) -> None:
    path = fake.kubeconfig(tmp_path)
    config = msgspec.json.decode(path.read_bytes())
    config["users"] = [{"name": "fake", "user": user}]
    path.write_bytes(msgspec.json.encode(config))

    with pytest.raises(Unavailable) as refused:
        await Cluster.from_settings(kubeconfig=str(path)).version()

    assert said in refused.value.message


async def test_a_way_in_that_is_none_is_said_to_be_none(fake: FakeKubernetes, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no kubeconfig at .*nothing"):
        await Cluster.from_settings(kubeconfig=str(tmp_path / "nothing")).version()
    with pytest.raises(Unavailable, match="There is no way to the cluster"):
        await Cluster.from_settings(kubeconfig=str(fake.kubeconfig(tmp_path)), context="other").version()
