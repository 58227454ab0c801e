"""What the retry of a run does to its nodes, in documents as they are on record (engine specification, section 15).

Common to both engines: computed from the records alone, so a run can be retried after the engine's object is gone.
Whatever an engine wrote into a node beyond the fields known here stays in it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .embedded.nodes import Node, Phase
from .embedded.reopen import reopen


class Rewritten(msgspec.Struct, frozen=True, kw_only=True):
    changed: tuple[tuple[str, str, str], ...]
    """Id, phase and JSON text of the nodes that are others now."""
    removed: tuple[str, ...]
    """Ids of the nodes to forget; the steps among them run again under the same ids."""


class StillOpen(Exception):
    """A node has not ended: there is nothing to retry yet."""

    def __init__(self, name: str, phase: str) -> None:
        super().__init__(f"node {name} is {phase}")
        self.name = name
        self.phase = phase


class OfAnotherKind(Exception):
    """A node is none that this could be worked out for: another engine has kinds of its own."""


def rewrite(workflow_name: str, nodes: Iterable[tuple[str, str]]) -> Rewritten:
    """`nodes` are id and JSON text of all there are. Raises StillOpen or OfAnotherKind."""
    texts = dict(nodes)
    try:
        records = [_decode(text) for text in texts.values()]
    except msgspec.ValidationError as error:
        raise OfAnotherKind(str(error)) from error
    for record in records:
        if record.phase in (Phase.PENDING, Phase.RUNNING):
            raise StillOpen(record.name, record.phase.value)
    reopened = reopen(workflow_name, records)
    return Rewritten(
        changed=tuple((node.id, node.phase.value, _merged(texts[node.id], node)) for node in reopened.changed),
        removed=reopened.removed,
    )


_decode = msgspec.json.Decoder(Node).decode
_KNOWN = frozenset(field.encode_name for field in msgspec.structs.fields(Node))


def _merged(text: str, node: Node) -> str:
    document = msgspec.json.decode(text)
    unknown = {key: value for key, value in document.items() if key not in _KNOWN}
    return msgspec.json.encode(unknown | msgspec.to_builtins(node)).decode()
