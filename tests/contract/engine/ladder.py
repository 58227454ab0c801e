"""The conformance ladder of workflows (workflow specification, section 19) as data.

Each rung is a small manifest and what must come of it: the phase of the run, the phase of each node (all there are)
and, where that does not tell it, a look at the record. The rungs from 60 on need more than a manifest, and are tested
where they live: the stop, the retry and the restart with the port and the run service, metrics with what brings them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.contract.engine.manifests import c, dag, file_of, given, of, on_claim, steps, task, workflow
from tests.contract.engine.recorder import Run

OK, FAILED, ERROR, SKIPPED, OMITTED = "Succeeded", "Failed", "Error", "Skipped", "Omitted"


@dataclass(kw_only=True)
class Rung:
    number: int
    scenario: str
    manifest: Mapping[str, Any]
    nodes: Mapping[str, str]
    phase: str = OK
    message: str = ""
    messages: Mapping[str, str] = field(default_factory=dict)
    """Node → the beginning of its message."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Node → its output parameter `o`."""
    look: Callable[[Run], None] = lambda run: None


def _equal(found: object, wanted: object) -> None:
    assert found == wanted


def _single(run: Run) -> None:
    assert str(run.id_of()) == str(run.name)
    assert run.node()["type"] == "Pod"


def _dag_of_one(run: Run) -> None:
    assert run.node()["type"] == "DAG"
    assert run.node(".a")["type"] == "Pod"
    assert run.node(".a")["boundaryID"] == run.name
    _equal(list(run.node()["outboundNodes"]), [run.id_of(".a")])
    _equal(run.children(), {".a"})


def _in_turn(*names: str) -> Callable[[Run], None]:
    """Whatever the order, no two at one time (whole seconds, as the record has it)."""

    def look(run: Run) -> None:
        times = sorted((run.node(name)["startedAt"], run.node(name)["finishedAt"]) for name in names)
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(times)), times

    return look


def _keys_hold_ids(run: Run) -> None:
    for node in run.nodes.values():
        for artifact in node.get("outputs", {}).get("artifacts", ()):
            if "s3" in artifact:
                assert node["id"] in artifact["s3"]["key"]


def _untouched_host(run: Run) -> None:
    assert run.artifact("", "m")["s3"]["key"].endswith("/m.tgz")
    assert not os.path.exists("/mlpipeline-metrics.json")
    assert not os.path.exists("/output.txt")


def _retry_of_three(run: Run) -> None:
    assert run.node()["type"] == "Retry"
    _equal(run.children(), {"(0)", "(1)", "(2)"})


EMIT = c("printf %s '" + given("v") + "' > /tmp/o", takes=["v"], gives={"o": "/tmp/o"})
ECHO = c("true", takes=["v"])
FAIL = c("exit 1")
PASS = c("true")
STATUS = c("printf %s '{{workflow.status}}' > /tmp/o", gives={"o": "/tmp/o"})
MEET = "touch /v/$0; i=0; until [ -e /v/$1 ]; do i=$((i+1)); [ $i -lt 200 ] || exit 1; sleep 0.05; done"
AWKWARD = 'it\'s "so"\n\\ ☃ $HOME {not a tag}'


def _met(me: str, other: str) -> Any:
    template = on_claim("")
    template["container"]["args"] = [MEET, me, other]
    return template


LADDER = [
    Rung(number=1, scenario="single container", manifest=workflow(c("echo hi")), nodes={"": OK}, look=_single),
    Rung(
        number=2,
        scenario="container fails",
        manifest=workflow(c("exit 3")),
        nodes={"": FAILED},
        phase=FAILED,
        message="Error (exit code 3)",
        messages={"": "Error (exit code 3)"},
        look=lambda run: _equal(run.node()["outputs"]["exitCode"], "3"),
    ),
    Rung(
        number=3,
        scenario="DAG of one",
        manifest=workflow(dag(task("a", "t")), templates={"t": PASS}),
        nodes={"": OK, ".a": OK},
        look=_dag_of_one,
    ),
    Rung(
        number=4,
        scenario="chain with parameter",
        manifest=workflow(
            dag(task("a", "w"), task("b", "r", "a", given={"v": of("a")})),
            templates={"w": c("echo value > /tmp/o", gives={"o": "/tmp/o"}), "r": EMIT},
        ),
        nodes={"": OK, ".a": OK, ".b": OK},
        values={".a": "value", ".b": "value"},
        look=lambda run: _equal(run.children(".a"), {".b"}),
    ),
    Rung(
        number=5,
        scenario="two trailing newlines",
        manifest=workflow(c("printf 'x\\n\\n' > /tmp/o", gives={"o": "/tmp/o"})),
        nodes={"": OK},
        values={"": "x\n"},
    ),
    Rung(
        number=6,
        scenario="diamond",
        manifest=workflow(
            dag(task("a", "t"), task("b", "b", "a"), task("c", "c", "a"), task("d", "t", "b", "c")),
            templates={"t": PASS, "b": _met("b", "c"), "c": _met("c", "b")},
        ),
        nodes={"": OK, ".a": OK, ".b": OK, ".c": OK, ".d": OK},
        look=lambda run: _equal((run.children(".b"), run.children(".c")), ({".d"}, {".d"})),
    ),
    Rung(
        number=7,
        scenario="failure in one branch",
        manifest=workflow(
            dag(task("a", "f"), task("b", "t"), task("c", "t", "b"), task("d", "t", "a")),
            templates={"t": PASS, "f": FAIL},
        ),
        nodes={"": FAILED, ".a": FAILED, ".b": OK, ".c": OK, ".d": OMITTED},
        phase=FAILED,
    ),
    Rung(
        number=8,
        scenario="transitive omission",
        manifest=workflow(
            dag(task("a", "f"), task("b", "t", "a"), task("c", "t", "b")), templates={"t": PASS, "f": FAIL}
        ),
        nodes={"": FAILED, ".a": FAILED, ".b": OMITTED, ".c": OMITTED},
        phase=FAILED,
        messages={".b": "omitted: depends condition not met", ".c": "omitted: depends condition not met"},
    ),
    Rung(
        number=9,
        scenario="when false",
        manifest=workflow(dag(task("a", "t", when='"tails" == "heads"')), templates={"t": PASS}),
        nodes={"": OK, ".a": SKIPPED},
        messages={".a": 'when \'"tails" == "heads"\' evaluated false'},
    ),
    Rung(
        number=10,
        scenario="successor of a skipped task",
        manifest=workflow(dag(task("a", "t", when="1 == 2"), task("x", "t", "a")), templates={"t": PASS}),
        nodes={"": OK, ".a": SKIPPED, ".x": OK},
    ),
    Rung(
        number=11,
        scenario="value of a skipped producer",
        manifest=workflow(
            dag(task("s", "e", given={"v": "1"}, when="1 == 2"), task("x", "e", "s", given={"v": of("s")})),
            templates={"e": EMIT},
        ),
        nodes={"": OK, ".s": SKIPPED, ".x": OK},
        values={".x": "{{tasks.s.outputs.parameters.o}}"},
    ),
    Rung(
        number=12,
        scenario="artifact of a skipped producer",
        manifest=workflow(
            dag(task("s", "p", when="1 == 2"), task("x", "q", "s", files={"f": file_of("s")})),
            templates={"p": c("echo > /tmp/a", leaves={"a": "/tmp/a"}), "q": c("cat /tmp/f", files={"f": "/tmp/f"})},
        ),
        nodes={"": ERROR, ".s": SKIPPED, ".x": ERROR},
        phase=ERROR,
    ),
    Rung(
        number=13,
        scenario="optional artifact of a skipped producer",
        manifest=workflow(
            dag(
                task("s", "p", when="1 == 2"),
                task("x", "q", "s", files={"f": {"from": file_of("s"), "optional": True}}),
            ),
            templates={
                "p": c("echo > /tmp/a", leaves={"a": "/tmp/a"}),
                "q": c("[ ! -e /tmp/f ]", files={"f": {"path": "/tmp/f", "optional": True}}),
            },
        ),
        nodes={"": OK, ".s": SKIPPED, ".x": OK},
    ),
    Rung(
        number=14,
        scenario="when syntax error",
        manifest=workflow(
            dag(task("a", "e", given={"v": "not done"}), task("b", "t", "a", when=of("a") + " == 1")),
            templates={"e": EMIT, "t": PASS},
        ),
        nodes={"": ERROR, ".a": OK, ".b": ERROR},
        phase=ERROR,
        look=lambda run: _equal(run.node(".b")["type"], "Skipped"),
    ),
    Rung(
        number=15,
        scenario="numeric when",
        manifest=workflow(
            dag(task("a", "t", when="7 > 5"), task("b", "t", when="12 <= 12"), task("c", "t", when="10 > 9")),
            templates={"t": PASS},
        ),
        nodes={"": OK, ".a": OK, ".b": OK, ".c": OK},
    ),
    Rung(
        number=16,
        scenario="empty value, unquoted",
        manifest=workflow(
            dag(task("a", "e", given={"v": ""}), task("b", "t", "a", when=of("a") + " == x")),
            templates={"e": EMIT, "t": PASS},
        ),
        nodes={"": ERROR, ".a": OK, ".b": ERROR},
        phase=ERROR,
    ),
    Rung(
        number=17,
        scenario="apostrophe in a value",
        manifest=workflow(dag(task("b", "t", when='"it\'s" == "x"')), templates={"t": PASS}),
        nodes={"": ERROR, ".b": ERROR},
        phase=ERROR,
    ),
    Rung(
        number=18,
        scenario="withItems strings",
        manifest=workflow(
            dag(task("t", "e", given={"v": "{{item}}"}, withItems=["a", "b", "c"])), templates={"e": EMIT}
        ),
        nodes={"": OK, ".t": OK, ".t(0:a)": OK, ".t(1:b)": OK, ".t(2:c)": OK},
        values={".t(0:a)": "a", ".t(2:c)": "c"},
        look=lambda run: _equal(
            (run.node(".t")["type"], run.children(".t")), ("TaskGroup", {".t(0:a)", ".t(1:b)", ".t(2:c)"})
        ),
    ),
    Rung(
        number=19,
        scenario="withItems dicts",
        manifest=workflow(
            dag(task("t", "e", given={"v": "{{item.a}}"}, withItems=[{"a": 1, "b": 2}])), templates={"e": EMIT}
        ),
        nodes={"": OK, ".t": OK, ".t(0:a:1,b:2)": OK},
        values={".t(0:a:1,b:2)": "1"},
    ),
    Rung(
        number=20,
        scenario="withParam from an output",
        manifest=workflow(
            dag(
                task("l", "e", given={"v": json.dumps(list(range(12)))}),
                task("t", "e", "l", given={"v": "{{item}}"}, withParam=of("l")),
                task("z", "e", "t", given={"v": of("t")}),
            ),
            templates={"e": EMIT},
        ),
        nodes={"": OK, ".l": OK, ".t": OK, ".z": OK, **{f".t({n}:{n})": OK for n in range(12)}},
        values={".z": json.dumps([str(n) for n in range(12)], separators=(",", ":"))},
    ),
    Rung(
        number=21,
        scenario="withParam empty",
        manifest=workflow(
            dag(task("t", "e", given={"v": "{{item}}"}, withParam="[]"), task("x", "p", "t")),
            templates={"e": EMIT, "p": PASS},
        ),
        nodes={"": OK, ".t": OK, ".x": OK},
    ),
    Rung(
        number=22,
        scenario="withParam not JSON",
        manifest=workflow(
            dag(
                task("a", "e", given={"v": "abc"}),
                task("t", "e", "a", given={"v": "{{item}}"}, withParam=of("a")),
            ),
            templates={"e": EMIT},
        ),
        nodes={"": ERROR, ".a": OK, ".t": ERROR},
        phase=ERROR,
        messages={".t": "withParam value could not be parsed as a JSON list: abc"},
    ),
    Rung(
        number=23,
        scenario="fan-in",
        manifest=workflow(
            dag(
                task("t", "e", given={"v": "{{item}}"}, withItems=["b", "a"]),
                task("z", "e", "t", given={"v": of("t")}),
            ),
            templates={"e": EMIT},
        ),
        nodes={"": OK, ".t": OK, ".t(0:b)": OK, ".t(1:a)": OK, ".z": OK},
        values={".z": '["b","a"]'},
    ),
    Rung(
        number=24,
        scenario="fan-in of objects",
        manifest=workflow(
            dag(
                task("t", "e", given={"v": "{{item}}"}, withItems=["b", "a"]),
                task("z", "e", "t", given={"v": "{{tasks.t.outputs.parameters}}"}),
            ),
            templates={"e": EMIT},
        ),
        nodes={"": OK, ".t": OK, ".t(0:b)": OK, ".t(1:a)": OK, ".z": OK},
        values={".z": '[{"o":"b"},{"o":"a"}]'},
    ),
    Rung(
        number=25,
        scenario="one item fails",
        manifest=workflow(
            dag(task("t", "x", given={"v": "{{item}}"}, withItems=[0, 1, 0]), task("z", "p", "t")),
            templates={"x": c("exit " + given("v"), takes=["v"]), "p": PASS},
        ),
        nodes={"": FAILED, ".t": FAILED, ".t(0:0)": OK, ".t(1:1)": FAILED, ".t(2:0)": OK, ".z": OMITTED},
        phase=FAILED,
    ),
    Rung(
        number=26,
        scenario="nested loops",
        manifest=workflow(
            dag(task("o", "inner", given={"x": "{{item}}"}, withItems=[1, 2])),
            templates={
                "inner": dag(
                    task("i", "e", given={"v": given("x") + "{{item}}"}, withItems=["a", "b", "c"]), takes=["x"]
                ),
                "e": EMIT,
            },
        ),
        nodes={
            "": OK,
            ".o": OK,
            **{f".o({n}:{n + 1})": OK for n in range(2)},
            **{f".o({n}:{n + 1}).i": OK for n in range(2)},
            **{f".o({n}:{n + 1}).i({m}:{x})": OK for n in range(2) for m, x in enumerate("abc")},
        },
        values={".o(1:2).i(2:c)": "2c"},
    ),
    Rung(
        number=27,
        scenario="loop items with unicode and quotes",
        manifest=workflow(
            dag(task("t", "r", given={"v": "{{item}}"}, withItems=[AWKWARD])),
            templates={
                "r": {
                    **c('printf %s "$0" > /tmp/o', takes=["v"], gives={"o": "/tmp/o"}),
                    "container": {
                        "image": "any",
                        "command": ["sh", "-c"],
                        "args": ['printf %s "$0" > /tmp/o', given("v")],
                    },
                }
            },
        ),
        nodes={"": OK, ".t": OK, f".t(0:{AWKWARD})": OK},
        values={f".t(0:{AWKWARD})": AWKWARD},
    ),
    Rung(
        number=28,
        scenario="recursion",
        manifest=workflow(
            dag(task("r", "down", given={"n": "2"})),
            templates={
                "down": dag(
                    task("less", "less", given={"v": given("n")}),
                    task("r", "down", "less", given={"n": of("less")}, when=of("less") + " >= 0"),
                    takes=["n"],
                ),
                "less": c("echo $((" + given("v") + " - 1)) > /tmp/o", takes=["v"], gives={"o": "/tmp/o"}),
            },
        ),
        nodes={
            "": OK,
            ".r": OK,
            ".r.less": OK,
            ".r.r": OK,
            ".r.r.less": OK,
            ".r.r.r": OK,
            ".r.r.r.less": OK,
            ".r.r.r.r": SKIPPED,
        },
    ),
    Rung(
        number=29,
        scenario="recursion to a depth of fifty",
        manifest=workflow(
            dag(task("r", "down", given={"n": "49"})),
            templates={
                "down": dag(
                    task("less", "less", given={"v": given("n")}),
                    task("r", "down", "less", given={"n": of("less")}, when=of("less") + " >= 0"),
                    takes=["n"],
                ),
                "less": c("echo $((" + given("v") + " - 1)) > /tmp/o", takes=["v"], gives={"o": "/tmp/o"}),
            },
        ),
        nodes={
            "": OK,
            **{".r" * n: OK for n in range(1, 51)},
            **{".r" * n + ".less": OK for n in range(1, 51)},
            ".r" * 51: SKIPPED,
        },
    ),
    Rung(
        number=30,
        scenario="exit handler after success",
        manifest=workflow(PASS, templates={"bye": STATUS}, onExit="bye"),
        nodes={"": OK, ".onExit": OK},
        values={".onExit": "Succeeded"},
    ),
    Rung(
        number=31,
        scenario="exit handler after failure",
        manifest=workflow(FAIL, templates={"bye": STATUS}, onExit="bye"),
        nodes={"": FAILED, ".onExit": OK},
        phase=FAILED,
        message="Error (exit code 1)",
        values={".onExit": "Failed"},
    ),
    Rung(
        number=32,
        scenario="failing exit handler",
        manifest=workflow(PASS, templates={"bye": c("exit 4")}, onExit="bye"),
        nodes={"": OK, ".onExit": FAILED},
        phase=FAILED,
        message="Error (exit code 4)",
    ),
    Rung(
        number=33,
        scenario="exit handler after an entry in Error",
        manifest=workflow(c("true", gives={"o": "/tmp/o"}), templates={"bye": STATUS}, onExit="bye"),
        nodes={"": ERROR, ".onExit": OK},
        phase=ERROR,
        message="Error (exit code 1): /tmp/o: no such file or directory",
        values={".onExit": "Error"},
    ),
    Rung(
        number=34,
        scenario="retry until success",
        manifest=workflow(
            c(
                "echo {{retries}} > /tmp/o; [ {{retries}} = 2 ]",
                gives={"o": "/tmp/o"},
                retryStrategy={"limit": 4},
            )
        ),
        nodes={"": OK, "(0)": FAILED, "(1)": FAILED, "(2)": OK},
        values={"": "2"},
        look=_retry_of_three,
    ),
    Rung(
        number=35,
        scenario="retry exhausted",
        manifest=workflow(c("exit 1", retryStrategy={"limit": "2"})),
        nodes={"": FAILED, "(0)": FAILED, "(1)": FAILED, "(2)": FAILED},
        phase=FAILED,
        message="No more retries left",
    ),
    Rung(
        number=36,
        scenario="retry limit zero",
        manifest=workflow(c("exit 1", retryStrategy={"limit": 0})),
        nodes={"": FAILED, "(0)": FAILED},
        phase=FAILED,
        message="No more retries left",
    ),
    Rung(
        number=37,
        scenario="retry policy OnError, step Failed",
        manifest=workflow(c("exit 1", retryStrategy={"limit": 2, "retryPolicy": "OnError"})),
        nodes={"": FAILED, "(0)": FAILED},
        phase=FAILED,
        message="Error (exit code 1)",
    ),
    Rung(
        number=38,
        scenario="retry policy Always, output missing",
        manifest=workflow(
            c("true", gives={"o": "/tmp/o"}, retryStrategy={"limit": 1, "retryPolicy": "Always"}),
        ),
        nodes={"": ERROR, "(0)": ERROR, "(1)": ERROR},
        phase=ERROR,
        message="No more retries left",
    ),
    Rung(
        number=39,
        scenario="retry with backoff",
        manifest=workflow(
            c("exit 1", retryStrategy={"limit": 2, "backoff": {"duration": "1", "factor": 2}}),
        ),
        nodes={"": FAILED, "(0)": FAILED, "(1)": FAILED, "(2)": FAILED},
        phase=FAILED,
        message="No more retries left",
        look=lambda run: _backed_off(run),
    ),
    Rung(
        number=40,
        scenario="retried dependency",
        manifest=workflow(
            dag(task("a", "a"), task("b", "p", "a")),
            templates={"a": c("[ {{retries}} = 1 ]", retryStrategy={"limit": 3}), "p": PASS},
        ),
        nodes={"": OK, ".a": OK, ".a(0)": FAILED, ".a(1)": OK, ".b": OK},
        look=lambda run: _equal(run.children(".a(1)"), {".b"}),
    ),
    Rung(
        number=41,
        scenario="step deadline",
        manifest=workflow(
            dag(task("a", "s"), task("b", "p")),
            templates={"s": c("sleep 30", activeDeadlineSeconds=2), "p": c("sleep 2.5")},
        ),
        nodes={"": FAILED, ".a": FAILED, ".b": OK},
        phase=FAILED,
        messages={".a": "Pod was active on the node longer than the specified deadline"},
        look=lambda run: _equal(run.seconds() <= 5, True),
    ),
    Rung(
        number=42,
        scenario="run deadline",
        manifest=workflow(
            dag(task("a", "s"), task("b", "s", "a")),
            templates={"s": c("sleep 30"), "bye": STATUS},
            activeDeadlineSeconds=4,
            onExit="bye",
        ),
        nodes={"": FAILED, ".a": FAILED, ".b": OMITTED, ".onExit": OK},
        phase=FAILED,
        messages={".a": "Step exceeded its deadline"},
        values={".onExit": "Failed"},
    ),
    Rung(
        number=43,
        scenario="workflow parallelism of one",
        manifest=workflow(
            dag(task("a", "s"), task("b", "s"), task("c", "s")),
            templates={"s": on_claim("mkdir /v/alone && sleep 0.2 && rmdir /v/alone")},
            parallelism=1,
        ),
        nodes={"": OK, ".a": OK, ".b": OK, ".c": OK},
        look=_in_turn(".a", ".b", ".c"),
    ),
    Rung(
        number=44,
        scenario="template parallelism of one around a loop",
        manifest=workflow(
            dag(task("g", "g")),
            templates={
                "g": dag(task("t", "s", given={"v": "{{item}}"}, withItems=[1, 2, 3]), parallelism=1),
                "s": on_claim("mkdir /v/alone && sleep 0.2 && rmdir /v/alone", takes=["v"]),
            },
        ),
        nodes={"": OK, ".g": OK, ".g.t": OK, ".g.t(0:1)": OK, ".g.t(1:2)": OK, ".g.t(2:3)": OK},
    ),
    Rung(
        number=45,
        scenario="parallelism of zero is no limit",
        manifest=workflow(
            dag(task("b", "b"), task("c", "c"), parallelism=0),
            templates={"b": _met("b", "c"), "c": _met("c", "b")},
        ),
        nodes={"": OK, ".b": OK, ".c": OK},
    ),
    Rung(
        number=46,
        scenario="artifact file",
        manifest=workflow(
            dag(task("a", "p"), task("b", "q", "a", files={"f": file_of("a")})),
            templates={
                "p": c("seq 5 > /tmp/a", leaves={"a": "/tmp/a"}),
                "q": c("cat /in/f > /tmp/o", files={"f": "/in/f"}, gives={"o": "/tmp/o"}),
            },
        ),
        nodes={"": OK, ".a": OK, ".b": OK},
        values={".b": "1\n2\n3\n4\n5"},
        look=_keys_hold_ids,
    ),
    Rung(
        number=47,
        scenario="artifact directory",
        manifest=workflow(
            dag(task("a", "p"), task("b", "q", "a", files={"f": file_of("a")})),
            templates={
                "p": c(
                    "mkdir -p /tmp/a/deep; echo 1 > /tmp/a/x; echo 2 > /tmp/a/y; echo 3 > /tmp/a/deep/z",
                    leaves={"a": "/tmp/a"},
                ),
                "q": c("cd /in/f && cat x y deep/z > /tmp/o", files={"f": "/in/f"}, gives={"o": "/tmp/o"}),
            },
        ),
        nodes={"": OK, ".a": OK, ".b": OK},
        values={".b": "1\n2\n3"},
    ),
    Rung(
        number=48,
        scenario="raw artifact with quotes, newline and dollar",
        manifest=workflow(
            c(
                "cat /in/f > /tmp/o; echo >> /tmp/o",
                files={"f": {"path": "/in/f", "raw": {"data": AWKWARD}}},
                gives={"o": "/tmp/o"},
            )
        ),
        nodes={"": OK},
        values={"": AWKWARD},
    ),
    Rung(
        number=49,
        scenario="workflow artifact argument",
        manifest=workflow(
            c("cat /in/f > /tmp/o", files={"f": "/in/f"}, gives={"o": "/tmp/o"}),
            arguments={
                "parameters": [{"name": "p", "value": "from outside"}],
                "artifacts": [{"name": "f", "raw": {"data": "{{workflow.parameters.p}}"}}],
            },
        ),
        nodes={"": OK},
        values={"": "from outside"},
    ),
    Rung(
        number=50,
        scenario="missing output parameter",
        manifest=workflow(c("true", gives={"o": "/tmp/o"})),
        nodes={"": ERROR},
        phase=ERROR,
        message="Error (exit code 1): /tmp/o: no such file or directory",
    ),
    Rung(
        number=51,
        scenario="default for a missing output",
        manifest=workflow(c("true", gives={"o": {"path": "/tmp/o", "default": "instead"}})),
        nodes={"": OK},
        values={"": "instead"},
    ),
    Rung(
        number=52,
        scenario="optional output artifact absent",
        manifest=workflow(c("true", leaves={"m": {"path": "/tmp/m", "optional": True}})),
        nodes={"": OK},
        look=lambda run: _equal("s3" in run.artifact("", "m"), False),
    ),
    Rung(
        number=53,
        scenario="parallel steps write the same path",
        manifest=workflow(
            dag(task("t", "e", given={"v": "{{item}}"}, withItems=["x", "y", "z"])), templates={"e": EMIT}
        ),
        nodes={"": OK, ".t": OK, ".t(0:x)": OK, ".t(1:y)": OK, ".t(2:z)": OK},
        values={".t(0:x)": "x", ".t(1:y)": "y", ".t(2:z)": "z"},
    ),
    Rung(
        number=54,
        scenario="root-level outputs",
        manifest=workflow(
            c(
                "echo '{}' > /mlpipeline-metrics.json; echo root > /output.txt",
                gives={"o": "/output.txt"},
                leaves={"m": "/mlpipeline-metrics.json"},
            )
        ),
        nodes={"": OK},
        values={"": "root"},
        look=_untouched_host,
    ),
    Rung(
        number=55,
        scenario="claim that three steps share in turn",
        manifest=workflow(
            dag(task("make", "make"), task("a", "a", "make"), task("b", "b", "a"), task("c", "c", "b")),
            templates={
                "make": {
                    "resource": {
                        "action": "create",
                        "manifest": json.dumps(
                            {
                                "apiVersion": "v1",
                                "kind": "PersistentVolumeClaim",
                                "metadata": {"name": "{{workflow.name}}"},
                                "spec": {"resources": {"requests": {"storage": "1Gi"}}},
                            }
                        ),
                    },
                    "outputs": {"parameters": [{"name": "o", "valueFrom": {"jsonPath": "{.metadata.name}"}}]},
                },
                "a": on_claim("echo 1 >> /v/f"),
                "b": on_claim("echo 2 >> /v/f"),
                "c": on_claim("echo 3 >> /v/f; cp /v/f /tmp/o", gives={"o": "/tmp/o"}),
            },
        ),
        nodes={"": OK, ".make": OK, ".a": OK, ".b": OK, ".c": OK},
        values={".c": "1\n2\n3"},
        look=lambda run: _equal(run.value(".make"), run.name),
    ),
    Rung(
        number=56,
        scenario="DAG outputs through levels",
        manifest=workflow(
            dag(task("i", "inner"), task("x", "q", "i", given={"v": of("i")}, files={"f": file_of("i")})),
            templates={
                "inner": dag(
                    task("p", "p"),
                    outputs={
                        "parameters": [{"name": "o", "valueFrom": {"parameter": of("p")}}],
                        "artifacts": [{"name": "a", "from": file_of("p")}],
                    },
                ),
                "p": c("echo par > /tmp/o; echo art > /tmp/a", gives={"o": "/tmp/o"}, leaves={"a": "/tmp/a"}),
                "q": c(
                    "(echo " + given("v") + "; cat /f) > /tmp/o",
                    takes=["v"],
                    files={"f": "/f"},
                    gives={"o": "/tmp/o"},
                ),
            },
        ),
        nodes={"": OK, ".i": OK, ".i.p": OK, ".x": OK},
        values={".i": "par", ".x": "par\nart"},
    ),
    Rung(
        number=57,
        scenario="depends expressions",
        manifest=workflow(
            dag(
                task("f", "f"),
                task("s", "p", when="1 == 2"),
                task("on-failure", "p", depends="f.Failed"),
                task("on-skip", "p", depends="s.Skipped"),
                task("either", "p", depends="f.Succeeded || s.Skipped"),
                task("never", "p", depends="!f.Failed"),
            ),
            templates={"f": FAIL, "p": PASS},
        ),
        nodes={
            "": FAILED,
            ".f": FAILED,
            ".s": SKIPPED,
            ".on-failure": OK,
            ".on-skip": OK,
            ".either": OK,
            ".never": OMITTED,
        },
        phase=FAILED,
    ),
    Rung(
        number=58,
        scenario="continueOn at a leaf",
        manifest=workflow(
            dag(task("f", "f", continueOn={"failed": True}), task("p", "p", "f")),
            templates={"f": FAIL, "p": PASS},
        ),
        nodes={"": OK, ".f": FAILED, ".p": OK},
    ),
    Rung(
        number=59,
        scenario="steps with withItems and when",
        manifest=workflow(
            steps(
                [task("each", "e", given={"v": "{{item}}"}, withItems=["a", "b"]), task("no", "p", when="1 == 2")],
                [task("last", "p")],
            ),
            templates={"e": EMIT, "p": PASS},
        ),
        nodes={
            "": OK,
            "[0]": OK,
            "[0].each(0:a)": OK,
            "[0].each(1:b)": OK,
            "[0].no": SKIPPED,
            "[1]": OK,
            "[1].last": OK,
        },
        look=lambda run: _equal((run.node("[0]")["type"], run.node()["type"]), ("StepGroup", "Steps")),
    ),
]


def _backed_off(run: Run) -> None:
    messages = {node.get("message", "") for seen in run.history for node in seen.nodes if node["type"] == "Retry"}
    assert {"Backoff for 1s", "Backoff for 2s", "No more retries left"} <= messages
    assert run.seconds() >= 3
