"""What `headrace jobs` asks the gateway for, and what it makes of the answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infra.cli import main
from tests.support.packages import PIPELINE, tarball

MADE = {"name": "n", "enabled": True, "max_concurrency": "1", "pipeline_spec": {}, "resource_references": []}


class _Gateway(BaseHTTPRequestHandler):
    """Answers everything with the same, and keeps what it was asked."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        server: Any = self.server
        server.asked = (self.command, self.path, body)
        status, answer = server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - names that the library knows

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def gateway() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), _Gateway) as server:
        answering = threading.Thread(target=server.serve_forever, args=(0.01,))
        answering.start()
        yield server
        server.shutdown()
        answering.join()


def _jobs(gateway: Any, answer: Any, *arguments: str, status: int = 200) -> Result:
    gateway.answer = (status, answer)
    variables = {"HEADRACE_URL": f"http://127.0.0.1:{gateway.server_port}", "HEADRACE_TOKEN": ""}
    return CliRunner().invoke(main, ["jobs", *arguments], env=variables)


SLOTS = {"time_zone": "Asia/Kolkata", "slots": ["2026-01-01T21:00:00Z", "2026-01-02T21:00:00Z"]}


def test_slots_are_printed_on_the_clock_of_the_jobs_zone(gateway: Any) -> None:
    result = _jobs(gateway, SLOTS, "preview", "a/b", "-n", "2")
    assert gateway.asked == ("GET", "/apis/headrace/v1/jobs/a%2Fb:preview?count=2", None)
    assert result.stdout.splitlines() == ["2026-01-02T02:30:00+05:30", "2026-01-03T02:30:00+05:30"]
    assert _jobs(gateway, {"time_zone": "UTC"}, "preview", "a").stdout == ""


def test_a_backfill_says_its_range_and_whether_it_is_meant(gateway: Any) -> None:
    result = _jobs(gateway, SLOTS, "backfill", "a", "--from", "2026-01-01T00:00:00Z", "--dry-run")
    assert gateway.asked[:2] == ("POST", "/apis/headrace/v1/jobs/a:backfill")
    assert gateway.asked[2] == {"start_time": "2026-01-01T00:00:00Z", "dry_run": True}
    assert len(result.stdout.splitlines()) == 2
    assert _jobs(gateway, {}, "backfill", "a", "--give-up").exit_code == 0
    assert gateway.asked == ("DELETE", "/apis/headrace/v1/jobs/a:backfill", None)


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        (["--name", "new"], {"name": "new"}),
        (
            ["--cron", "0 0 3 * * *", "--end", "2027-01-01T00:00:00Z"],
            {"trigger": {"cron_schedule": {"cron": "0 0 3 * * *", "end_time": "2027-01-01T00:00:00Z"}}},
        ),
        (["--every", "90"], {"trigger": {"periodic_schedule": {"interval_second": "90"}}}),
        (
            ["--time-zone", "UTC", "--missed", "none", "--window", "0", "--overlap", "skip"],
            {"time_zone": "UTC", "missed": "none", "missed_window_seconds": 0, "overlap": "skip"},
        ),
        (
            ["--on", "failed", "--on", "error", "--of-pipeline", "p", "--of-job", "j"],
            {"on": {"facts": ["failed", "error"], "pipeline_id": "p", "job_id": "j"}},
        ),
        (["--max-concurrency", "2", "--pause-on-failures", "3"], {"max_concurrency": 2, "pause_on_failures": 3}),
        (
            ["--parameter", "a=b=c", "--parameter", "d="],
            {"parameters": [{"name": "a", "value": "b=c"}, {"name": "d", "value": ""}]},
        ),
    ],
)
def test_only_what_is_named_is_changed(gateway: Any, arguments: list[str], change: Any) -> None:
    result = _jobs(gateway, {"id": "a", "name": "é"}, "update", "a", *arguments)
    assert gateway.asked == ("PATCH", "/apis/headrace/v1/jobs/a", change)
    assert json.loads(result.stdout) == {"id": "a", "name": "é"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cron", "x", "--every", "1"],
        ["--start", "2026-01-01T00:00:00Z"],
        ["--on", "ended"],
        ["--of-job", "j"],
        ["--on", "ended", "--of-job", "j", "--every", "1"],
    ],
)
def test_half_a_schedule_is_none(gateway: Any, arguments: list[str]) -> None:
    assert _jobs(gateway, {}, "update", "a", *arguments).exit_code == 2


def test_a_job_is_made_of_a_pipeline_and_its_id_printed(gateway: Any) -> None:
    result = _jobs(gateway, {"id": "a"}, "create", "n", "--pipeline", "p", "--every", "90", "--parameter", "a=b")
    assert (result.exit_code, result.stdout) == (0, "a\n")
    spec = {"pipeline_id": "p", "parameters": [{"name": "a", "value": "b"}]}
    trigger = {"periodic_schedule": {"interval_second": "90"}}
    assert gateway.asked == ("POST", "/apis/v1beta1/jobs", MADE | {"trigger": trigger, "pipeline_spec": spec})


def test_a_job_is_made_of_a_version_in_an_experiment_and_waits_to_be_enabled(gateway: Any) -> None:
    named = ["--version", "v", "--experiment", "e", "--on", "failed", "--of-job", "j"]
    how = ["--disabled", "--max-concurrency", "3", "--service-account", "s", "--time-zone", "UTC", "--window", "0"]
    _jobs(gateway, {"id": "a"}, "create", "n", *named, *how)
    assert gateway.asked[2] == MADE | {
        "enabled": False,
        "max_concurrency": "3",
        "service_account": "s",
        "time_zone": "UTC",
        "missed_window_seconds": 0,
        "on": {"facts": ["failed"], "job_id": "j"},
        "resource_references": [
            {"key": {"type": "EXPERIMENT", "id": "e"}, "relationship": "OWNER"},
            {"key": {"type": "PIPELINE_VERSION", "id": "v"}, "relationship": "CREATOR"},
        ],
    }


@pytest.mark.parametrize("name", ["ml.yaml", "ml.tar.gz"])
def test_a_job_is_made_of_a_package(gateway: Any, tmp_path: Path, name: str) -> None:
    package = tmp_path / name
    package.write_bytes(PIPELINE.encode() if name == "ml.yaml" else tarball(("pipeline.yaml", PIPELINE.encode())))
    _jobs(
        gateway, {"id": "a"}, "create", "n", f"--package={package}", "--cron", "0 0 3 * * *", "--start", "2026-01-01Z"
    )
    asked = gateway.asked[2]
    assert asked["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *", "start_time": "2026-01-01Z"}}
    assert list(asked["pipeline_spec"]) == ["workflow_manifest"]
    manifest = json.loads(asked["pipeline_spec"]["workflow_manifest"])
    assert (manifest["kind"], manifest["spec"]["entrypoint"]) == ("Workflow", "main")


def test_what_is_no_package_is_one_line(gateway: Any, tmp_path: Path) -> None:
    package = tmp_path / "ml.yaml"
    package.write_text("kind: Pod")
    result = _jobs(gateway, {}, "create", "n", f"--package={package}", "--every", "90")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"headrace jobs create: {package}: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--every", "1"],
        ["--pipeline", "p", "--version", "v", "--every", "1"],
        ["--pipeline", "p"],
        ["--pipeline", "p", "--every", "1", "--cron", "x"],
        ["--package", "nowhere.yaml", "--every", "1"],
    ],
)
def test_what_makes_no_job_is_not_asked_for(gateway: Any, arguments: list[str]) -> None:
    assert _jobs(gateway, {"id": "a"}, "create", "n", *arguments).exit_code == 2
    assert not hasattr(gateway, "asked")


def test_jobs_are_listed_with_whether_they_fire_and_when(gateway: Any) -> None:
    cron = {"cron_schedule": {"cron": "0 0 3 * * *"}}
    every = {"periodic_schedule": {"interval_second": "90"}}
    jobs = [
        {"id": "a", "name": "nightly", "enabled": True, "trigger": cron},
        {"id": "b", "name": "often", "trigger": every, "error": "3 runs have failed"},
        {"id": "c", "name": "after"},
    ]
    result = _jobs(gateway, {"jobs": jobs}, "list", "--experiment", "e/f")
    path, _, query = gateway.asked[1].partition("?")
    assert path == "/apis/v1beta1/jobs"
    assert "resource_reference_key.type=EXPERIMENT&resource_reference_key.id=e%2Ff" in query
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "a enabled nightly 0 0 3 * * *",
        "b disabled often every 90 s 3 runs have failed",
        "c disabled after",
    ]
    _jobs(gateway, {}, "list")
    assert "resource_reference_key" not in gateway.asked[1]


def test_a_job_is_enabled_disabled_and_deleted(gateway: Any) -> None:
    for verb, asked in (("enable", ("POST", "a%2Fb/enable")), ("disable", ("POST", "a%2Fb/disable"))):
        assert _jobs(gateway, {}, verb, "a/b").exit_code == 0
        assert gateway.asked == (asked[0], f"/apis/v1beta1/jobs/{asked[1]}", None)
    assert _jobs(gateway, {}, "delete", "a/b").exit_code == 0
    assert gateway.asked == ("DELETE", "/apis/v1beta1/jobs/a%2Fb", None)


def test_a_history_tells_who_changed_what(gateway: Any) -> None:
    fields = [{"field": "name", "before": "old", "after": "new"}, {"field": "description", "after": "x"}]
    revision = {"version": "2", "changed_at": "2026-01-01T00:00:00Z", "changed_by": "token:ci", "fields": fields}
    result = _jobs(gateway, {"revisions": [revision]}, "history", "a")
    assert result.stdout.splitlines() == [
        "2026-01-01T00:00:00Z by token:ci",
        "  name: old -> new",
        "  description:  -> x",
    ]
    assert _jobs(gateway, {}, "history", "a").stdout == ""


def test_a_refusal_is_one_line(gateway: Any) -> None:
    refusal = {"details": [{"error_message": "Job a not found."}]}
    result = _jobs(gateway, refusal, "show", "a", status=404)
    assert (result.exit_code, result.stderr) == (1, "headrace jobs show: Job a not found.\n")


def test_what_a_request_says_wrong_is_told_in_words(gateway: Any) -> None:
    answer = {"error": 'bad Timestamp: parsing time "yesterday"', "message": "the same", "code": 3}
    result = _jobs(gateway, answer, "backfill", "a", "--from", "yesterday", status=400)
    assert result.stderr == 'headrace jobs backfill: bad Timestamp: parsing time "yesterday"\n'
