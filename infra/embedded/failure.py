"""Why a stack, or one of its servers, cannot start: always one line that says what to do about it."""

from __future__ import annotations


class StartFailure(Exception):
    """Something that must run does not. The message is a single line for the person at the terminal."""
