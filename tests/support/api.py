"""A plain HTTP client for tests: requests as any client makes them, nothing hidden.

Every answer is held against the published reference on its way in.
"""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import urllib3

from tests.support.hooks import judge

FINAL = frozenset({"Succeeded", "Failed", "Error", "Skipped"})


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Api:
    """Blocking calls against one base URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = urllib3.PoolManager(timeout=30, retries=False)

    def call(self, method: str, path: str, **how: Any) -> Answer:
        reply = self._http.request(method, self.url + path, redirect=False, **how)
        judge(method, path, reply.status, reply.headers.get("content-type", ""), reply.data)
        return Answer(status=reply.status, headers=dict(reply.headers), body=reply.data)

    def get(self, path: str, **query: str) -> Any:
        return self._expect(self.call("GET", path, fields=query or None))

    def post(self, path: str, body: Any = None) -> Any:
        return self._expect(self.call("POST", path, body=json.dumps(body) if body is not None else None))

    def delete(self, path: str) -> Any:
        return self._expect(self.call("DELETE", path))

    def upload(self, path: str, file_name: str, content: bytes) -> Any:
        return self._expect(self.call("POST", path, fields={"uploadfile": (file_name, content)}))

    def run_when(self, run_id: str, *, within_seconds: float, statuses: frozenset[str] = FINAL) -> Any:
        """The run's detail as soon as its status is one of these; fails the test when the time is up."""
        deadline = time.monotonic() + within_seconds
        pause = _Pause()
        while True:
            detail = self.get(f"/apis/v1beta1/runs/{run_id}")
            if detail["run"].get("status") in statuses:
                return detail
            if time.monotonic() > deadline:
                raise AssertionError(f"run {run_id} is {detail['run'].get('status')!r} after {within_seconds} s")
            pause()

    def _expect(self, answer: Answer) -> Any:
        assert answer.status == 200, f"{answer.status}: {answer.body.decode(errors='replace')[:2000]}"
        return answer.json


class _Pause:
    """Between two looks at a state that is awaited: short at first."""

    def __init__(self) -> None:
        self._seconds = 0.02

    def __call__(self) -> None:
        time.sleep(self._seconds)
        self._seconds = min(0.25, self._seconds * 1.5)


def workflow_of(detail: Any) -> Any:
    """The workflow as it ran, from a run's detail."""
    return json.loads(detail["pipeline_runtime"]["workflow_manifest"])
