import pytest

from services.run.engine.embedded.expression import ExpressionError, Outcome, evaluate_when, parse_depends

TRUE = [
    '"heads" == "heads"',
    "5 > 3",
    "0.93 >= 0.9",
    "-1 < 0",
    "12 <= 12",
    "10 > 9",
    "abc =~ '^a'",
    "abc !~ '^b'",
    "x in (x, y)",
    "1 in (2, 1)",
    '"abc" < "abd"',
    "true",
    "!false",
    "!(1 > 2) && heads == heads",
    "1 > 2 || 2 > 1",
    "1 + 2 * 3 == 7",
    "2 ** 3 == 8",
    "7 % 4 == 3",
    "0x1f == 31",
    "(1 > 2 ? 5 : 6) == 6",
    "a + b == ab",
    "5 & 4 == 4",
    "1 << 3 == 8",
    "[flip-coin] == 'flip-coin'",
    '"2020-01-02" > "2020-01-01"',
    '"2020-01-02" == "2020-01-02"',
    r'"say \"hi\"" == "say \"hi\""',
    '"{{tasks.a.outputs.parameters.b}}" == "{{tasks.a.outputs.parameters.b}}"',
    "true || 1 / 0 > 2",
]

FALSE = [
    "heads == tails",
    '5 == "5"',
    "True == true",
    '"" == "x"',
    "1 > 2",
    "x in (y, z)",
    "false && not_evaluated",
    "1 > 2 && 2 > 1",
]

ERRORS = {
    '"5" > 3': "cannot be used with the comparator",
    '"it\'s" == "x"': "Invalid 'when' expression",
    "not done == done": "Cannot transition",
    "flip-coin == heads": "cannot be used with the operator",
    " == heads": "Cannot transition",
    "{{tasks.a.outputs.parameters.b}} == x": "Invalid token",
    "1e-05 < 1": "Cannot transition",
    "": "Unexpected end",
    "heads": "expected a boolean",
    "1 + 1": "expected a boolean",
    "a.b == c": "unexported field",
    "a. == c": "Hanging accessor",
    "a.B == c": "No parameter",
    "(1 > 2": "Unbalanced parenthesis",
    "1 > 2)": "Cannot transition",
    "1 ==-1": "Invalid token",
    "1.2.3 == 1": "Unable to parse numeric",
    '"open == 1': "Unclosed string",
    "5 > 3 && heads": "cannot be used with the logical operator",
    "abc =~ '('": "Unable to compile regexp",
    "5 in 5": "cannot be used with the comparator 'in'",
}


@pytest.mark.parametrize("expression", TRUE)
def test_an_expression_that_holds(expression: str) -> None:
    assert evaluate_when(expression) is True


@pytest.mark.parametrize("expression", FALSE)
def test_an_expression_that_does_not_hold(expression: str) -> None:
    assert evaluate_when(expression) is False


@pytest.mark.parametrize(("expression", "reason"), ERRORS.items())
def test_an_expression_that_makes_no_sense_says_so(expression: str, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        evaluate_when(expression)
    assert str(caught.value).startswith(f"Invalid 'when' expression '{expression}'")
    assert reason in str(caught.value)


def test_a_long_chain_of_operators_and_deep_parentheses_end_in_an_answer_or_an_error() -> None:
    assert evaluate_when(" && ".join(["true"] * 200))
    with pytest.raises(ExpressionError):
        evaluate_when("(" * 20_000 + "true" + ")" * 20_000)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|b)*", "a*b*c*d*", r"(a)\\1", "(?=a)"])
def test_a_pattern_that_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(ExpressionError, match="too costly"):
        evaluate_when(f"{'a' * 40} =~ '{pattern}'")


def test_a_huge_shift_costs_nothing() -> None:
    assert evaluate_when("1 << 999999999999 == 0")


OUTCOMES = {
    "ok": frozenset({Outcome.SUCCEEDED}),
    "bad": frozenset({Outcome.FAILED}),
    "skip-me": frozenset({Outcome.SKIPPED}),
    "omitted": frozenset[Outcome](),
    "loop": frozenset({Outcome.FAILED, Outcome.ANY_SUCCEEDED}),
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ok", True),
        ("bad", False),
        ("bad.Failed", True),
        ("skip-me", True),
        ("skip-me.Skipped && ok.Succeeded", True),
        ("omitted || bad.Failed", True),
        ("omitted", False),
        ("!bad.Succeeded && (ok || skip-me)", True),
        ("ok || bad && omitted", True),
        ("(ok || bad) && omitted", False),
        ("!(ok && bad)", True),
        ("!!ok", True),
        ("loop.AnySucceeded", True),
        ("loop.AllFailed", False),
    ],
)
def test_depends_is_a_boolean_expression_over_outcomes(text: str, holds: bool) -> None:
    assert parse_depends(text).holds(OUTCOMES) is holds


@pytest.mark.parametrize("text", ["", "a b", "a &&", "(a", "a)", "a.Nonsense", "&& a", "a !b", "a ? b", "!", "()"])
def test_a_depends_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse_depends(text)


def test_depends_names_each_task_once() -> None:
    assert parse_depends("b || (a.Failed && !b.Skipped)").names == ("b", "a")
