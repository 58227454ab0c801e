"""What steps have left, on record."""

from __future__ import annotations

import hashlib

from services.run.engine.embedded.cache import Kept
from services.run.step_cache import StepCache
from tests.component.run.conftest import World

KEY = hashlib.sha256(b"the same").hexdigest()
KEPT = Kept(parameters={"o": "a \0 b"}, artifacts={"a": "artifacts/wf/n/a.tgz"}, result="printed")


async def test_what_is_kept_is_found_until_something_newer_is(world: World) -> None:
    cache = StepCache(world.database)
    run_id = (await world.client.create())["id"]
    assert await cache.find(KEY, max_age_seconds=None) is None

    await cache.keep(KEY, KEPT, run_id=run_id)
    assert await cache.find(KEY, max_age_seconds=None) == KEPT

    newer = Kept(parameters={"o": "c"})
    await cache.keep(KEY, newer, run_id=run_id)
    assert await cache.find(KEY, max_age_seconds=None) == newer


async def test_nothing_older_than_wanted_is_found(world: World) -> None:
    cache = StepCache(world.database)
    await cache.keep(KEY, KEPT, run_id=(await world.client.create())["id"])
    await world.database.execute("update step_cache set kept_at = kept_at - interval '1 hour'")

    assert await cache.find(KEY, max_age_seconds=3590) is None
    assert await cache.find(KEY, max_age_seconds=3700) == KEPT
    assert await cache.find(KEY, max_age_seconds=1000 * 365 * 86400) == KEPT


async def test_what_a_deleted_run_left_is_forgotten_and_not_kept_any_more(world: World) -> None:
    cache = StepCache(world.database)
    run_id, other_id = [(await world.client.create())["id"] for _ in range(2)]
    other_key = KEY[::-1]
    await cache.keep(KEY, KEPT, run_id=run_id)
    await cache.keep(other_key, KEPT, run_id=other_id)

    answer = await world.client.call("DELETE", f"/runs/{run_id}")
    assert answer.status == 200
    assert await cache.find(KEY, max_age_seconds=None) is None

    await cache.keep(KEY, KEPT, run_id=run_id)
    assert await cache.find(KEY, max_age_seconds=None) is None
    assert await cache.find(other_key, max_age_seconds=None) == KEPT


async def test_what_was_kept_while_its_run_was_deleted_goes_with_the_rest_of_it(world: World) -> None:
    cache = StepCache(world.database)
    run_id = (await world.client.create())["id"]
    await cache.keep(KEY, KEPT, run_id=run_id)

    await world.records.mark_erased(run_id)

    assert await cache.find(KEY, max_age_seconds=None) is None
