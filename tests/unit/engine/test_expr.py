"""The expressions of `{{=…}}`: what they come to, and what they cannot."""

from __future__ import annotations

import pytest

from services.run.engine.embedded.expr import holds, read, text_of
from services.run.engine.embedded.expression import ExpressionError

VALUES = {
    "inputs.parameters.n": "5",
    "inputs.parameters.my-name": 'it\'s "so"',
    "inputs.parameters.list": '["a","b"]',
    "inputs.parameters.doc": '{"a":{"b":[1,2.5,null]},"t":true}',
    "inputs.parameters.which": "n",
    "workflow.name": "wf",
    "tasks.a-b.status": "Succeeded",
}


def value(text: str) -> str | None:
    return text_of(read(text), VALUES.get)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("7 / 2", "3.5"),
        ("4 / 2", "2"),
        ("-7 % 3", "-1"),
        ("2 ** 3 ** 2", "512"),
        ("-2 ** 2", "4"),
        ("0x10 + 1_000", "1016"),
        ("1.5e3", "1500"),
        (".5 + 1", "1.5"),
        ("1e30 / 3 > 1", "true"),
        ("'a' + \"b\"", "ab"),
        (r"'it\'s\n'", "it's\n"),
        ("1 == 1.0", "true"),
        ("1 == '1'", "false"),
        ("true == 1", "false"),
        ("'b' > 'a' && 2 >= 2", "true"),
        ("not true or true", "true"),
        ("!(1 < 2) || false", "false"),
        ("1 < 2 and 2 != 3", "true"),
        ("'x' in ['x', 'y']", "true"),
        ("3 not in [1, 2]", "true"),
        ("'abc' contains 'b' && 'abc' startsWith 'a' && 'abc' endsWith 'c'", "true"),
        ("'abc' matches '^a.c$'", "true"),
        ("1 > 2 ? 'yes' : 2 > 1 ? 'other' : 'no'", "other"),
        ("['a', 1, [true]]", "[a 1 [true]]"),
        ("['a', 'b'][1]", "b"),
        ("['a', 'b'][-1]", "b"),
        ("workflow.name + '-x'", "wf-x"),
        ("inputs.parameters['my-name']", 'it\'s "so"'),
        ("tasks['a-b'].status == 'Succeeded'", "true"),
        ("inputs.parameters[inputs.parameters.which]", "5"),
        ("asInt(inputs.parameters.n) * 2", "10"),
        ("asFloat(inputs.parameters.n) / 2", "2.5"),
        ("asInt(2.9)", "2"),
        ("asFloat('1e3')", "1000"),
        ("string(1.0) + string(true)", "1true"),
        ("len(inputs.parameters.n) + len([1, 2])", "3"),
        ("toJson(['a', 1.0, true])", '["a",1,true]'),
        ("jsonpath(inputs.parameters.doc, '$.a.b[1]')", "2.5"),
        ("jsonpath(inputs.parameters.doc, '{.t}') ? 'y' : 'n'", "y"),
        ("jsonpath(inputs.parameters.doc, '$').a.b[0] + 1", "2"),
        ("toJson(jsonpath(inputs.parameters.doc, '$.a'))", '{"b":[1,2.5,null]}'),
        ("string(jsonpath(inputs.parameters.doc, '$'))", "map[a:map[b:[1 2.5 <nil>]] t:true]"),
        ("jsonpath(inputs.parameters.doc, '$.a.b[2]')", None),
        ("inputs.parameters.unknown", None),
        ("true ? 'known' : inputs.parameters.unknown", "known"),
        ("false && inputs.parameters.unknown == ''", "false"),
        ("nil", None),
        ("nil == nil", "true"),
    ],
)
def test_an_expression_has_the_text_of_its_value(text: str, result: str | None) -> None:
    assert value(text) == result


@pytest.mark.parametrize(
    "text",
    [
        "1 + 'a'",
        "'5' > 3",
        "!1",
        "-'a'",
        "1 ? 2 : 3",
        "1 && true",
        "'a' in 'abc'",
        "1 / 0",
        "1 % 0",
        "1.5 % 2",
        "10 ** 1000",
        "9223372036854775807 + 1",
        "[1][1]",
        "'text'.member",
        "[1].member",
        "asInt('x')",
        "asInt('1.5')",
        "asInt(true)",
        "asFloat('')",
        "asInt()",
        "string(1, 2)",
        "jsonpath('{', '$.a')",
        "jsonpath('{}', '$.a')",
        "jsonpath('[]', '$..a')",
        "len(3)",
        "sprig.trim('x')",
        "'a' matches '(a+)+$'",
    ],
)
def test_what_makes_no_sense_is_an_error(text: str) -> None:
    with pytest.raises(ExpressionError):
        value(text)


NO_EXPRESSIONS = (
    *("", "1 +", "(1", "[1", "a b", "1 ? 2", "f(1", "'open", "a.", "a[", "a.1", "@", "1 not 2", r"'\q'"),
    *("1..3", "a?.b", "a ?? b", "x | upper", "{'a': 1}", "filter(x, {# > 1})"),
    *("9" * 100, "(" * 5000, "x" * 20_000),
)


@pytest.mark.parametrize("text", NO_EXPRESSIONS, ids=lambda text: text[:20])
def test_what_is_no_expression_cannot_be_read(text: str) -> None:
    with pytest.raises(ExpressionError):
        read(text)


def test_an_expression_tells_what_it_asks_for() -> None:
    text = "sprig.trim(inputs.parameters['a-b']) == tasks.t.outputs.result ? asInt(item) : tasks[item].status"
    expression = read(text)
    assert expression.names == ("inputs.parameters.a-b", "tasks.t.outputs.result", "item")
    assert (expression.functions, expression.unknown_functions) == (("sprig.trim", "asInt"), ("sprig.trim",))


def test_a_condition_is_true_or_false_and_knows_its_names() -> None:
    assert holds("asInt(inputs.parameters.n) > 3", VALUES.get)
    assert not holds("workflow.name == ''", VALUES.get)
    for text in ("inputs.parameters.n", "unknown == 'x'"):
        with pytest.raises(ExpressionError):
            holds(text, VALUES.get)
