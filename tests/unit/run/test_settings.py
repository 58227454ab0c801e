"""What the processes of the run service are told, and what they are not told in so many words."""

from __future__ import annotations

import pytest

from services.run.engine.embedded.reconcile import Limits
from services.run.settings import ControllerSettings
from shared.settings import SettingsError, load

NEEDED = {
    f"HEADRACE_{name}": "x"
    for name in (
        *("DATABASE_URL", "NATS_URL", "OBJECT_STORE_URL", "OBJECT_STORE_ACCESS_KEY", "OBJECT_STORE_SECRET_KEY"),
        *("STEP_RUNNER_SOCKET", "STEPS_DIR", "ENGINE_DATA_DIR"),
    )
}


def controller(**variables: str) -> ControllerSettings:
    return load(ControllerSettings, NEEDED | {f"HEADRACE_{name}": value for name, value in variables.items()})


def test_runs_stop_where_the_engine_stops_them_unless_told_otherwise() -> None:
    settings = controller()
    assert Limits(depth=settings.most_levels, nodes=settings.most_nodes) == Limits()


@pytest.mark.parametrize("variable", ["MOST_LEVELS", "MOST_NODES"])
def test_a_run_of_nothing_is_refused_as_a_limit(variable: str) -> None:
    with pytest.raises(SettingsError, match=f"^HEADRACE_{variable}='0': "):
        controller(**{variable: "0"})
