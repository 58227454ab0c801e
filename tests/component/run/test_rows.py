"""The table's own constraints: rows that the state machine cannot reach cannot be written."""

from __future__ import annotations

import pytest

from shared.database import ConstraintViolated
from tests.component.run.conftest import World

IMPOSSIBLE = [
    ("status = 'Succeeded'", "runs_final_check"),
    ("status = 'Failed', started_at = now()", "runs_final_check"),
    ("finished_at = now()", "runs_final_check"),
    ("status = 'Running', started_at = now(), finished_at = now()", "runs_final_check"),
    ("status = 'Running'", "runs_running_check"),
    ("started_at = now()", "runs_new_check"),
    ("status = 'Terminating'", "runs_terminating_check"),
    ("terminate_sent_at = now()", "runs_terminate_sent_check"),
    ("error = 'but nothing has happened'", "runs_error_check"),
    ("status = 'Omitted'", "runs_status_check"),
    ("storage_state = ''", "runs_storage_state_check"),
    ("name = ''", "runs_name_check"),
    ("attempt = 0", "runs_attempt_check"),
    ("attempt = 2", "runs_retried_check"),
    ("retried_at = now()", "runs_retried_check"),
    ("version = 0", "runs_version_check"),
    ("workflow_name = ''", "runs_workflow_name_check"),
]
POSSIBLE = [
    "status = 'Pending'",
    "status = 'Running', started_at = now()",
    "status = 'Error', finished_at = now(), error = 'never started'",
    "status = 'Succeeded', started_at = now(), finished_at = now()",
    "status = 'Terminating', terminate_requested_at = now()",
    "status = 'Running', started_at = now(), attempt = 2, retried_at = now()",
    "status = 'Failed', terminate_requested_at = now(), terminate_sent_at = now(), finished_at = now()",
]


async def test_impossible_rows_are_refused_by_name(world: World) -> None:
    run_id = (await world.client.create())["id"]
    for assignment, constraint in IMPOSSIBLE:
        with pytest.raises(ConstraintViolated) as refused:
            await world.database.execute(f"update runs set {assignment} where id = $1", run_id)
        assert refused.value.constraint == constraint, assignment


async def test_every_state_has_a_row(world: World) -> None:
    for assignment in POSSIBLE:
        run_id = (await world.client.create())["id"]
        await world.database.execute(f"update runs set {assignment} where id = $1", run_id)
        assert (await world.client.get(run_id))["id"] == run_id
