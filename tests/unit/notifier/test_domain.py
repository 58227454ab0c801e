from __future__ import annotations

import json
from typing import Any

import pytest

from services.notifier.domain import DELAYS_SECONDS, About, Wanted, about_of, slack_text

A_RUN = About(experiment_id="e", pipeline_id="p", job_id="j")


@pytest.mark.parametrize(
    ("wanted", "owner", "what", "about", "is_taken"),
    [
        (Wanted(), "run", "failed", A_RUN, True),
        (Wanted(), "metrics", "reported", About(), True),
        (Wanted(owners=frozenset({"run"})), "run", "failed", A_RUN, True),
        (Wanted(owners=frozenset({"experiment", "run"})), "run", "failed", A_RUN, True),
        (Wanted(owners=frozenset({"experiment"})), "run", "failed", A_RUN, False),
        (Wanted(whats=frozenset({"failed", "error"})), "run", "failed", A_RUN, True),
        (Wanted(whats=frozenset({"succeeded"})), "run", "failed", A_RUN, False),
        (Wanted(owners=frozenset({"run"}), whats=frozenset({"created"})), "experiment", "created", About(), False),
        (Wanted(about=About(experiment_id="e")), "run", "failed", A_RUN, True),
        (Wanted(about=About(experiment_id="f")), "run", "failed", A_RUN, False),
        (Wanted(about=About(experiment_id="e")), "run", "failed", About(), False),
        (Wanted(about=About(pipeline_id="p")), "run", "failed", A_RUN, True),
        (Wanted(about=About(pipeline_id="q")), "run", "failed", A_RUN, False),
        (Wanted(about=About(job_id="j")), "run", "failed", A_RUN, True),
        (Wanted(about=About(experiment_id="e", job_id="i")), "run", "failed", A_RUN, False),
        (Wanted(resource_id="r"), "run", "failed", A_RUN, True),
        (Wanted(resource_id="s"), "run", "failed", A_RUN, False),
    ],
)
def test_a_fact_passes_where_every_condition_that_is_made_holds(
    wanted: Wanted, owner: str, what: str, about: About, is_taken: bool
) -> None:
    assert wanted.takes(owner, what, "r", about) is is_taken


@pytest.mark.parametrize(
    ("owner", "what", "about"),
    [
        ("experiment", "created", About(experiment_id="x")),
        ("job-scheduler", "triggered", About(job_id="x", experiment_id="e", pipeline_id="p")),
        ("pipeline-registry", "deleted", About(pipeline_id="x")),
        ("pipeline-registry", "version-created", About(pipeline_id="p")),
        ("run", "failed", A_RUN),
    ],
)
def test_a_resource_is_also_about_itself(owner: str, what: str, about: About) -> None:
    said = {
        "experiment": About(),
        "pipeline-registry": About(pipeline_id="p") if what.startswith("version-") else About(),
        "job-scheduler": About(experiment_id="e", pipeline_id="p"),
        "run": A_RUN,
    }[owner]
    assert about_of(owner, what, "x", said) == about


def test_a_delivery_is_tried_twelve_times_over_more_than_a_day() -> None:
    assert len(DELAYS_SECONDS) + 1 == 12
    assert list(DELAYS_SECONDS) == sorted(DELAYS_SECONDS)
    assert 24 < sum(DELAYS_SECONDS) / 3600 < 27


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            {"type": "kfp.run.failed.v1", "subject": "4711", "data": {"name": "nightly", "error": "no\nspace"}},
            "run *nightly* failed: no space (kfp.run.failed.v1, 4711)",
        ),
        (
            {"type": "kfp.job-scheduler.triggered.v1", "subject": "j", "data": {"name": "<!channel> & co"}},
            "job-scheduler *&lt;!channel&gt; &amp; co* triggered (kfp.job-scheduler.triggered.v1, j)",
        ),
        (
            {"type": "kfp.metrics.reported.v1", "subject": "r", "data": {"metrics": []}},
            "metrics *r* reported (kfp.metrics.reported.v1, r)",
        ),
    ],
)
def test_what_slack_is_told(event: dict[str, Any], text: str) -> None:
    assert slack_text(json.dumps(event).encode()) == text
