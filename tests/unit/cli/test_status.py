"""What `headrace status` makes of what processes say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.cli import main
from infra.embedded.ports import free_ports
from tests.support.stack_folder import stack_on

Pages = dict[str, tuple[int, str]]

WELL: Pages = {"/livez": (200, "ok\n"), "/readyz": (200, "ok\n"), "/metrics": (200, "process_start_time_seconds 1\n")}


@contextmanager
def process(pages: Pages) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = pages.get(self.path, (404, ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        answering = threading.Thread(target=server.serve_forever, args=(0.01,))
        answering.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        answering.join()


@pytest.fixture
def start() -> Iterator[Callable[[Pages], str]]:
    with ExitStack() as running:
        yield lambda pages: running.enter_context(process(pages))


def status(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["status", *arguments], env={"HEADRACE_TOKEN": "", "HEADRACE_DATA_DIR": ""})


FIGURES = """
headrace_build_info{version="1.2.3"} 1
headrace_leases_held{lease="relay:run"} 1
headrace_leases_held{lease="figures"} 0
headrace_outbox_waiting{service="run",owner="run"} 3
headrace_outbox_oldest_seconds{service="run",owner="run"} 2.5
headrace_subscriber_behind{service="run",owner="experiment"} 7
headrace_dead_letters{service="run"} 0
headrace_runs{service="run",status="Pending"} 4
process_resident_memory_bytes 73400320
process_start_time_seconds 1
"""


def test_processes_that_are_well_are_summed_up_and_what_two_show_is_not_doubled(start: Callable[[Pages], str]) -> None:
    run = start(WELL | {"/metrics": (200, FIGURES)})
    again = start(WELL | {"/metrics": (200, FIGURES.replace('"relay:run"} 1', '"relay:run"} 0'))})
    engine = {"name": "embedded", "runtime": "bubblewrap"}
    gateway = start(WELL | {"/apis/headrace/v1/engine": (200, json.dumps(engine))})
    named = [f"--process=gateway={gateway}", f"--process=run={run}", f"--process=run-2={again}"]
    done = status(*named, "--json")
    assert done.exit_code == 0, done.output
    seen = json.loads(done.stdout)
    assert [each["name"] for each in seen["processes"]] == ["gateway", "run", "run-2"]
    assert seen["processes"][1] | {"up_seconds": 0} == {
        "name": "run",
        "url": run,
        "is_alive": True,
        "is_ready": True,
        "reason": "",
        "up_seconds": 0,
        "memory_bytes": 73400320,
        "version": "1.2.3",
        "holds": ["relay:run"],
    }
    assert seen["outboxes"] == [{"owner": "run", "waiting": 3, "oldest_seconds": 2.5}]
    assert seen["subscriptions"] == [{"subscriber": "run", "owner": "experiment", "behind": 7}]
    assert seen["open_runs"] == {"Pending": 4}
    assert seen["engine"] == engine | {"weaker": ""}
    text = status(*named).stdout
    for words in ("ready", "70 MiB", "relay", "1.2.3", "4 Pending", "3 run", "7 run of experiment", "bubblewrap"):
        assert words in text


def test_who_does_not_answer_and_who_is_not_ready_is_told_with_the_reason(start: Callable[[Pages], str]) -> None:
    waits = start(WELL | {"/readyz": (503, "Unavailable: The broker does not answer.\n")})
    stuck = start(WELL | {"/livez": (503, "lost or stuck: tell the engine\n")})
    (port,) = free_ports(1)
    done = status(
        f"--process=run={waits}", f"--process=run-controller={stuck}", f"--process=metrics=http://127.0.0.1:{port}"
    )
    assert done.exit_code == 1
    for complaint in (
        "run is not ready: Unavailable: The broker does not answer.",
        "run-controller is not alive: lost or stuck: tell the engine",
        "metrics is not alive: nobody answers",
    ):
        assert complaint in done.stdout


def test_what_waits_for_too_long_and_what_was_given_up_on_is_complained_of(start: Callable[[Pages], str]) -> None:
    bad = FIGURES.replace("} 2.5", "} 90").replace('letters{service="run"} 0', 'letters{service="run"} 2')
    run = start(WELL | {"/metrics": (200, bad + 'headrace_job_slots_overdue_seconds{service="job-scheduler"} 45\n')})
    done = status(f"--process=run={run}", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["complaints"] == [
        "facts of run have not left for 1.5 min",
        "run has given up on 2 facts: headrace dead list",
        "a slot of a job is due since 45 s",
    ]


def test_the_processes_of_a_stack_are_found_by_its_folder(start: Callable[[Pages], str], tmp_path: Path) -> None:
    gateway, run = start(WELL), start(WELL)
    ports = {name: int(url.rpartition(":")[2]) for name, url in (("gateway", gateway), ("run", run))}
    with stack_on(tmp_path, ports | {"postgres": 1, "nats": 2}):
        found = status("--json", f"--data-dir={tmp_path}")
        shown = status(f"--data-dir={tmp_path}")
    assert found.exit_code == 0, found.output
    assert {each["name"]: each["url"] for each in json.loads(found.stdout)["processes"]} == {
        "gateway": gateway,
        "run": run,
    }
    # Where its figures are to be had, too.
    assert run.removeprefix("http://") in shown.stdout


def test_nobody_is_asked_in_the_name_of_a_stack_that_does_not_run(
    start: Callable[[Pages], str], tmp_path: Path
) -> None:
    """Whoever answers at its ports is another one, such as the stack that a backup was made of."""
    with stack_on(tmp_path, {"run": int(start(WELL).rpartition(":")[2])}):
        pass
    done, document = status(f"--data-dir={tmp_path}"), status("--json", f"--data-dir={tmp_path}")
    complaint = f"no stack runs on {tmp_path}: `headrace up` starts it"
    assert (done.exit_code, document.exit_code) == (1, 1)
    assert done.stdout == f"{complaint}\n"
    seen = json.loads(document.stdout)
    assert (seen["processes"], seen["complaints"]) == ([], [complaint])


def test_in_an_upgrade_it_is_told_who_runs_which_version(start: Callable[[Pages], str]) -> None:
    old = start(WELL | {"/metrics": (200, FIGURES)})
    new = start(WELL | {"/metrics": (200, FIGURES.replace("1.2.3", "1.2.4"))})
    assert (
        "1.2.3 run; 1.2.4 run-2, metrics"
        in status(f"--process=run={old}", f"--process=run-2={new}", f"--process=metrics={new}").stdout
    )


def test_a_folder_without_a_stack_and_a_process_without_a_url_are_said_so(tmp_path: Path) -> None:
    assert "no stack has run on" in status(f"--data-dir={tmp_path}").output
    assert "say NAME=URL" in status("--process=run").output
