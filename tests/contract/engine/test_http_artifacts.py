"""Input artifacts that a URL names: fetched for the step, from where the step stands."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.contract.engine.manifests import c, dag, given, task, workflow
from tests.contract.engine.recorder import Recorder


class Site:
    """Answers on loopback with what it was given, and remembers who asked for what."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.is_asked = threading.Event()
        self.answers = threading.Event()
        self.answers.set()
        site = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, self.headers.get("X-Who")))
                site.is_asked.set()
                site.answers.wait(60)
                page = site.pages.get(self.path)
                self.send_response(404 if page is None else 200)
                self.end_headers()
                self.wfile.write(page or b"")

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever)
    thread.start()
    yield site
    site.answers.set()
    site.server.shutdown()
    thread.join()
    site.server.server_close()


def reads(script: str, **artifact: Any) -> dict[str, Any]:
    return c(script, takes=["path"], files={"f": {"path": "/in/f", **artifact}}, gives={"o": "/tmp/o"})


def called(template: dict[str, Any], path: str) -> dict[str, Any]:
    return workflow(dag(task("a", "reads", given={"path": path})), templates={"reads": template})


def tgz(**files: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


async def test_a_url_is_a_file_of_the_step(recorder: Recorder, site: Site) -> None:
    site.pages["/page"] = b"one\x00two"
    http = {"url": f"{site.url}/{given('path')}", "headers": [{"name": "X-Who", "value": given("path")}]}
    run = await recorder.carry_out(called(reads("od -An -c /in/f > /tmp/o; echo >> /in/f", http=http), "page"))

    assert run.value(".a").split() == ["o", "n", "e", "\\0", "t", "w", "o"]
    assert site.asked == [("/page", "page")]
    (artifact,) = run.node(".a")["inputs"]["artifacts"]
    assert artifact["http"]["url"] == f"{site.url}/page"


async def test_an_archive_is_unpacked_unless_it_is_wanted_as_it_is(recorder: Recorder, site: Site) -> None:
    site.pages["/packed"] = tgz(x="1", y="2")
    http = {"url": f"{site.url}/packed"}

    run = await recorder.carry_out(called(reads("cat /in/f/x /in/f/y > /tmp/o", http=http), ""))
    assert run.value(".a") == "12"

    script = "gzip -dc /in/f | tar -t | tr '\\n' ' ' > /tmp/o"
    run = await recorder.carry_out(called(reads(script, http=http, archive={"none": {}}), ""))
    assert run.value(".a").split() == ["x", "y"]


async def test_an_argument_may_be_a_url(recorder: Recorder, site: Site) -> None:
    site.pages["/page"] = gzip.compress(b"no tar")
    files = {"f": {"http": {"url": f"{site.url}/page"}}}
    manifest = workflow(
        dag(task("a", "reads", given={"path": ""}, files=files)), templates={"reads": reads("gzip -dc /in/f > /tmp/o")}
    )

    assert (await recorder.carry_out(manifest)).value(".a") == "no tar"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{site}/absent", "it cannot be downloaded: HTTP Error 404: Not Found"),
        ("file:///etc/passwd", "it cannot be downloaded: only http and https URLs are known"),
        ("http://127.0.0.1:1/", "it cannot be downloaded: <urlopen error [Errno 111] Connection refused>"),
    ],
)
async def test_what_cannot_be_fetched_is_said(recorder: Recorder, site: Site, url: str, reason: str) -> None:
    run = await recorder.carry_out(called(reads("true", http={"url": url.format(site=site.url)}), ""))

    assert (run.node(".a")["phase"], run.node(".a")["message"]) == ("Error", f"artifact f: {reason}")


async def test_a_run_that_is_terminated_does_not_wait_for_a_url(recorder: Recorder, site: Site) -> None:
    site.answers.clear()
    run = await recorder.begin(called(reads("true", http={"url": f"{site.url}/slow"}), ""))
    assert await asyncio.to_thread(site.is_asked.wait, 20)
    await recorder.engine.terminate(run.name)
    await recorder.end_of(run, within_seconds=10)

    assert run.message == "terminated"
