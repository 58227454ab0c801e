"""Creating an experiment: the shortest way through the gateway, a service, a commit and a fact. It has no budget."""

from __future__ import annotations

from tests.bench.creation import Budgets, client, compare, poster, renamed
from tests.bench.figures import Result
from tests.bench.house import standing

NAME = "create-experiment"
ABOUT = "create an experiment through the gateway, relay on"


async def measure() -> Result:
    body = renamed({"description": "Measured."})
    with standing() as house:
        async with client() as session:
            create = poster(session, f"{house.url}/apis/v1beta1/experiments", body)
            await create(0)
            rows, notes = await compare(
                house,
                session,
                ways={"create experiment": create},
                floor_body=body,
                table="experiment.experiments",
                unique=("id", "name"),
                budgets=Budgets(),
                repetitions=2,
            )
    return Result(rows=tuple(rows), notes=tuple(f"create experiment: {note}" for note in notes))
