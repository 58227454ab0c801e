from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.auth import StaticTokens
from gateway.tokens import TokenError, create, read, revoke
from infra.cli import main

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def known_to(file: Path, secret: str, *, now: datetime = NOW) -> bool:
    tokens = StaticTokens(file, now=lambda: now)
    tokens.refresh()
    return tokens.find(secret) is not None


def test_a_token_is_known_by_its_hash_alone(file: Path) -> None:
    secret = create(file, "ci")

    assert known_to(file, secret)
    assert secret not in file.read_text()
    assert not known_to(file, read(file)[0].sha256)


def test_two_tokens_are_never_the_same(file: Path) -> None:
    secrets = {create(file, f"client-{number}") for number in range(20)}

    assert len(secrets) == 20
    assert min(map(len, secrets)) > 43  # 256 bits in base64, and the prefix


def test_only_the_owner_may_read_the_file(file: Path) -> None:
    create(file, "ci")

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_token_ends_when_it_was_said_to(file: Path) -> None:
    secret = create(file, "ci", valid_for=timedelta(days=1), now=NOW)

    assert known_to(file, secret, now=NOW + timedelta(hours=23))
    assert not known_to(file, secret, now=NOW + timedelta(days=1))


def test_a_revoked_token_is_unknown_and_the_others_stay(file: Path) -> None:
    first, second = create(file, "first"), create(file, "second")

    revoke(file, "first")

    assert not known_to(file, first)
    assert known_to(file, second)


def test_a_name_is_given_once(file: Path) -> None:
    create(file, "ci")

    with pytest.raises(TokenError, match="already"):
        create(file, "ci")


@pytest.mark.parametrize("name", ["", " ci", "c\ni"])
def test_a_name_that_cannot_be_shown_is_refused(file: Path, name: str) -> None:
    with pytest.raises(TokenError, match="name"):
        create(file, name)


def test_what_is_not_there_cannot_be_revoked(file: Path) -> None:
    with pytest.raises(TokenError, match="no token named ci"):
        revoke(file, "ci")


def test_a_running_gateway_sees_a_change_of_the_file(file: Path) -> None:
    tokens = StaticTokens(file)
    tokens.refresh()
    secret = create(file, "ci")
    assert tokens.find(secret) is None

    tokens.refresh()
    caller = tokens.find(secret)
    assert caller is not None
    assert (caller.subject, caller.name) == ("token:ci", "ci")

    revoke(file, "ci")
    tokens.refresh()
    assert tokens.find(secret) is None


def test_a_damaged_file_changes_nothing_until_it_is_mended(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = StaticTokens(file)
    secret = create(file, "ci")
    tokens.refresh()

    file.write_text("{")
    tokens.refresh()

    assert tokens.find(secret) is not None
    assert "damaged" in caplog.text


def test_tokens_are_made_shown_and_revoked_by_command(file: Path) -> None:
    def headrace(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["token", "--file", str(file), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    secret = headrace("create", "ci", "--days", "7").strip()
    assert known_to(file, secret, now=datetime.now(UTC))
    shown = headrace("list")
    assert shown.startswith("ci\t")
    assert secret not in shown
    headrace("revoke", "ci")
    assert headrace("list") == ""


def test_what_the_command_cannot_do_is_said_in_a_line(file: Path) -> None:
    result = CliRunner().invoke(main, ["token", "--file", str(file), "revoke", "ci"])

    assert result.exit_code == 1
    assert result.output == "headrace token: there is no token named ci\n"
