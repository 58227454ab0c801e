"""What the step runner makes of its settings."""

from __future__ import annotations

import pytest

from services.run.engine.embedded.runner.settings import RunnerSettings
from shared.settings import SettingsError, load

NEEDED = {"HEADRACE_STEP_RUNNER_SOCKET": "/run/steps.sock", "HEADRACE_STEPS_DIR": "/steps"}


@pytest.mark.parametrize(
    ("words", "variables"),
    [
        ("", {}),
        ("A=1", {"A": "1"}),
        ("HTTPS_PROXY=http://proxy:3128  NO_PROXY=localhost,10.0.0.0/8", {
            "HTTPS_PROXY": "http://proxy:3128",
            "NO_PROXY": "localhost,10.0.0.0/8",
        }),
        ("OPTIONS='-a -b=c' EMPTY=\nB=\"it's\"", {"OPTIONS": "-a -b=c", "EMPTY": "", "B": "it's"}),
    ],
)  # fmt: skip
def test_variables_of_steps_are_words_quoted_as_in_a_shell(words: str, variables: dict[str, str]) -> None:
    settings = load(RunnerSettings, {**NEEDED, "HEADRACE_STEP_ENVIRONMENT": words})
    assert settings.step_variables == variables


@pytest.mark.parametrize("words", ["A", "=1", "1A=2", "A-B=1", "A='unfinished"])
def test_words_that_are_no_variables_are_refused_by_name(words: str) -> None:
    with pytest.raises(SettingsError, match=r"^HEADRACE_STEP_ENVIRONMENT "):
        load(RunnerSettings, {**NEEDED, "HEADRACE_STEP_ENVIRONMENT": words})
