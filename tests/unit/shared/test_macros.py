"""Macros in parameters and the time layouts they allow (API specification, section 11.6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from shared.macros import Occasion, expand, format_go

RUN_ID = "8f2c3d1e-0000-4000-8000-000000000001"
SLOT = datetime(1970, 1, 1, 0, 0, 25, tzinfo=UTC)
NOW = datetime(1970, 1, 1, 0, 0, 26, tzinfo=UTC)
FIRED = Occasion(run_id=RUN_ID, now=NOW, slot=SLOT, index=27)
ONE_OFF = Occasion(run_id=RUN_ID, now=NOW)

OF_EVERY_RUN: list[tuple[str, str]] = [
    ("FOO [[CurrentTime]] FOO", "FOO 19700101000026 FOO"),
    ("[[CurrentTime.15-04-05]]", "00-00-26"),
    ("[[CurrentTime.2006-01-02]] [[RunUUID]]", f"1970-01-01 {RUN_ID}"),
    ("{{$.currentTime.strftime('%Y-%m-%d %H:%M:%S')}}", "1970-01-01 00:00:26"),
    ("{{$.currentTime.strftime('%s')}} 100%", "26 100%"),
    ("{{$.currentTime.strftime('%%s %99999999Y %')}}", "%s %99999999Y %"),
    ("{{$.currentTime.strftime('')}}", ""),
    # What is no macro, or almost one.
    ("[[runuuid]] [[Unknown]] [[]] [[ ]]", "[[runuuid]] [[Unknown]] [[]] [[ ]]"),
    ("[[ CurrentTime ]] [[currentTime]] [[RunUUID.x]]", "[[ CurrentTime ]] [[currentTime]] [[RunUUID.x]]"),
    ("[[CurrentTimes]] [CurrentTime] [[CurrentTime", "[[CurrentTimes]] [CurrentTime] [[CurrentTime"),
    ("{{$.CurrentTime.strftime('%Y')}} {{currentTime}}", "{{$.CurrentTime.strftime('%Y')}} {{currentTime}}"),
    ("[1, [2, 3]] {{workflow.name}}", "[1, [2, 3]] {{workflow.name}}"),
    ("", ""),
]

OF_A_FIRED_RUN: list[tuple[str, str]] = [
    ("FOO [[ScheduledTime]] FOO", "FOO 19700101000025 FOO"),
    ("FOO [[Index]] FOO", "FOO 27 FOO"),
    ("[[ScheduledTime.15-04-05]] [[ScheduledTime.2006]]", "00-00-25 1970"),
    ("[[ScheduledTime.]]", ""),
    ("{{$.scheduledTime.strftime('%Y-%m-%d %H:%M:%S')}}", "1970-01-01 00:00:25"),
    ("{{$.scheduledTime.strftime('%s')}}", "25"),
    ("[[Index]][[Index]] [[ScheduledTime]]-[[CurrentTime]]", "2727 19700101000025-19700101000026"),
]


@pytest.mark.parametrize(("text", "expanded"), OF_EVERY_RUN + OF_A_FIRED_RUN)
def test_a_fired_run_knows_every_macro(text: str, expanded: str) -> None:
    assert expand(text, FIRED) == expanded


@pytest.mark.parametrize(("text", "expanded"), OF_EVERY_RUN + [(text, text) for text, _ in OF_A_FIRED_RUN[:-1]])
def test_a_run_without_a_slot_leaves_what_tells_of_one(text: str, expanded: str) -> None:
    assert expand(text, ONE_OFF) == expanded


def test_each_macro_of_a_value_is_looked_at_for_itself() -> None:
    assert expand(OF_A_FIRED_RUN[-1][0], ONE_OFF) == "[[Index]][[Index]] [[ScheduledTime]]-19700101000026"


def test_times_are_written_in_utc() -> None:
    there = timezone(timedelta(hours=-5))
    occasion = Occasion(run_id=RUN_ID, now=NOW.astimezone(there), slot=SLOT.astimezone(there), index=1)
    text = "[[ScheduledTime]] [[CurrentTime.15:04]] {{$.scheduledTime.strftime('%H')}}"
    assert expand(text, occasion) == "19700101000025 00:00 00"


AFTERNOON = datetime(2021, 3, 4, 17, 6, 7, 120_000, tzinfo=UTC)
MORNING = datetime(2009, 11, 23, 5, 46, 58, tzinfo=UTC)
MIDNIGHT = datetime(2020, 12, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("layout", "afternoon", "morning", "midnight"),
    [
        ("2006", "2021", "2009", "2020"),
        ("06", "21", "09", "20"),
        ("01", "03", "11", "12"),
        ("1", "3", "11", "12"),
        ("Jan", "Mar", "Nov", "Dec"),
        ("January", "March", "November", "December"),
        ("02", "04", "23", "31"),
        ("2", "4", "23", "31"),
        ("_2", " 4", "23", "31"),
        ("15", "17", "05", "00"),
        ("03", "05", "05", "12"),
        ("3", "5", "5", "12"),
        ("04", "06", "46", "00"),
        ("4", "6", "46", "0"),
        ("05", "07", "58", "00"),
        ("5", "7", "58", "0"),
        ("PM", "PM", "AM", "AM"),
        ("pm", "pm", "am", "am"),
        ("Mon", "Thu", "Mon", "Thu"),
        ("Monday", "Thursday", "Monday", "Thursday"),
        ("MST", "UTC", "UTC", "UTC"),
        ("Z07:00", "Z", "Z", "Z"),
        ("Z0700", "Z", "Z", "Z"),
        ("-07:00", "+00:00", "+00:00", "+00:00"),
        ("-0700", "+0000", "+0000", "+0000"),
        (".000", ".120", ".000", ".000"),
        (".999", ".12", "", ""),
        (".000000000", ".120000000", ".000000000", ".000000000"),
    ],
)
def test_a_layouts_token_stands_for_its_part_of_the_time(
    layout: str, afternoon: str, morning: str, midnight: str
) -> None:
    assert [format_go(layout, at) for at in (AFTERNOON, MORNING, MIDNIGHT)] == [afternoon, morning, midnight]


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("2006-01-02T15:04:05Z07:00", "2021-03-04T17:06:07Z"),
        ("Mon Jan _2 15:04:05 MST 2006", "Thu Mar  4 17:06:07 UTC 2021"),
        ("Monday, 02-Jan-06 03:04PM", "Thursday, 04-Mar-21 05:06PM"),
        ("20060102150405", "20210304170607"),
        ("02.01.2006", "04.03.2021"),
        ("3:4:5 pm 1/2/06", "5:6:7 pm 3/4/21"),
        ("January -0700 -07:00 Z0700", "March +0000 +00:00 Z"),
        ("05.000 05.999 05,00", "07.120 07.12 07,12"),
        ("_2006 at Monkey", "_2021 at Monkey"),
        ("Janet Monk", "Janet Monk"),
        ("plain", "plain"),
    ],
)
def test_what_is_no_token_of_a_layout_stays(layout: str, text: str) -> None:
    assert format_go(layout, AFTERNOON) == text
