from typing import Any

import pytest

from services.run.engine.embedded.loops import compact_json, expand, item_lookup, item_text, item_value
from services.run.engine.embedded.manifest import ManifestError, Parameter, Sequence, Task, scalar_text
from services.run.engine.embedded.orders import expand_variables
from services.run.engine.embedded.template import blanked, expressions, fill, first_of, has_item_tag, only_tag, tags

VALUES = {"inputs.parameters.x": "v", "a": "{{b}}", "b": 'say "hi"\n', "workflow.name": "wf"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{inputs.parameters.x}}", "v"),
        ("{{ inputs.parameters.x }}!", "v!"),
        ("{{b}}", 'say "hi"\n'),
        ("{{unknown}}", "{{unknown}}"),
        ("{{a}}", "{{b}}"),
        ("{{ {{inputs.parameters.x}} }}", "{{ v }}"),
        ('{"k":{{inputs.parameters.x}}}', '{"k":v}'),
        ("{{$.inputs.parameters['n']}}", "{{$.inputs.parameters['n']}}"),
        ("{% for x in y %}{{ x | upper }}", "{% for x in y %}{{ x | upper }}"),
        ("{{", "{{"),
        ("plain", "plain"),
    ],
)
def test_known_tags_are_replaced_and_all_other_text_stays(text: str, filled: str) -> None:
    assert fill(text, VALUES.get) == filled


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("a {{=1 + 1}} b {{workflow.name}}", "a 2 b wf"),
        ("{{=inputs.parameters.x + workflow.name}}", "vwf"),
        ("{{=inputs.parameters.unknown}} {{= 'x' }}", "{{=inputs.parameters.unknown}} x"),
        ("{{=workflow.name == 'wf' ? 'known' : unknown}}", "known"),
        ("{{=inputs.parameters['x']}}", "v"),
        ("{{='}' + '{'}}", "}{"),
        ("{{=asInt('{{inputs.parameters.x}}')}}", "{{=asInt('v')}}"),
        ("{{='{' + '{workflow.name}' + '}'}}", "{{workflow.name}}"),
        ("{{=}} {{=a b}} {{= }} {{ =1}}", "{{=}} {{=a b}} {{= }} {{ =1}}"),
    ],
)
def test_an_expression_is_replaced_by_its_value_once_its_names_are_known(text: str, filled: str) -> None:
    assert fill(text, VALUES.get) == filled


def test_an_expression_may_ask_for_what_an_earlier_pass_has_replaced() -> None:
    text = "{{=a + b}} {{b}}"
    assert fill(text, {"a": "1"}.get) == text
    assert fill(text, {"a": "1"}.get, {"b": "2"}.get) == "12 {{b}}"


def test_an_expression_that_makes_no_sense_is_an_error() -> None:
    with pytest.raises(ManifestError, match=r"^failed to evaluate \{\{=asInt\(workflow\.name\)\}\}: asInt cannot"):
        fill("{{=asInt(workflow.name)}}", VALUES.get)


def test_a_replacement_is_scanned_in_the_next_pass_only() -> None:
    once = fill("{{a}}", VALUES.get)
    assert (once, fill(once, VALUES.get)) == ("{{b}}", 'say "hi"\n')


def test_every_text_of_a_structure_is_filled_and_untouched_parts_are_shared() -> None:
    struct = Parameter(name="p", value="{{workflow.name}}")
    plain = Parameter(name="q", value="{{unknown}}")
    filled = fill([struct, plain, {"{{b}}": ["{{workflow.name}}", 3, None, True]}], VALUES.get)
    assert filled[0] == Parameter(name="p", value="wf")
    assert filled[1] is plain
    assert filled[2] == {'say "hi"\n': ["wf", 3, None, True]}


def test_the_first_lookup_that_knows_a_name_wins() -> None:
    assert fill("{{x}}{{y}}", first_of({"x": "1"}.get, {"x": "2", "y": "3"}.get)) == "13"


def test_tags_are_found_inside_structures() -> None:
    task = Task(when="{{item.a}} == {{ x }}", with_param="{{tasks.t.outputs.result}}")
    assert list(tags(task)) == ["item.a", "x", "tasks.t.outputs.result"]
    assert has_item_tag(task.when)
    assert only_tag(" {{ x }} ") == "x"
    assert only_tag("a{{x}}") is None
    assert only_tag("{{=x}}") is None
    assert list(tags("{{=tasks.a.status == item ? x : y}} {{z}} {{=a b}}")) == [
        *("tasks.a.status", "item", "x", "y"),
        "z",
    ]
    assert list(expressions(Task(when="{{=1}} {{x}}", with_param="{{= 2 }}"))) == ["1", " 2 "]
    assert blanked("{{a}} {{=b['}']}}", "x") == "x x"


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (False, "false"), (1, "1"), (1.0, "1"), (0.1, "0.1"), (1e-05, "0.00001"), (1e21, "1" + "0" * 21)],
)
def test_yaml_scalars_become_short_text_without_exponent(value: Any, text: str) -> None:
    assert scalar_text(value) == text


# -- loops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "value", "name"),
    [
        ("a", "a", "a"),
        ('na\u00efve "q" \\ \n', 'na\u00efve "q" \\ \n', 'na\u00efve "q" \\ \n'),
        (3, "3", "3"),
        (1.0, "1", "1"),
        (True, "true", "true"),
        ({"b": 2, "a": "x"}, '{"a":"x","b":2}', "a:x,b:2"),
        (["a", "b"], '["a","b"]', "[a b]"),
        ({"l": [1, 2], "d": {"k": "v"}}, '{"d":{"k":"v"},"l":[1,2]}', "d:k:v,l:[1 2]"),
    ],
)
def test_an_item_reads_as_a_value_and_as_a_part_of_a_name(item: Any, value: str, name: str) -> None:
    assert (item_value(item), item_text(item)) == (value, name)


def test_with_param_keeps_numbers_as_they_are_written() -> None:
    items = expand(Task(with_param=' [1.50, 10, "x", {"a": 1e3}]\n'))
    assert [item_value(each) for each in items] == ["1.50", "10", "x", '{"a":1e3}']


@pytest.mark.parametrize("text", ["[" * 100_000, "abc", "{}", '"a"', "[1", "", "{{tasks.x.outputs.parameters.y}}"])
def test_a_with_param_that_is_no_list_names_the_text(text: str) -> None:
    with pytest.raises(ManifestError) as caught:
        expand(Task(with_param=text))
    assert caught.value.reason.startswith(f"withParam value could not be parsed as a JSON list: {text}: ")


@pytest.mark.parametrize(
    ("sequence", "items"),
    [
        (Sequence(count="3"), ["0", "1", "2"]),
        (Sequence(count="2", start="5"), ["5", "6"]),
        (Sequence(start="3", end="1", format="0%d"), ["03", "02", "01"]),
        (Sequence(end="2", format="h%02x"), ["h00", "h01", "h02"]),
        (Sequence(count="0"), []),
    ],
)
def test_a_sequence_counts_up_and_down(sequence: Sequence, items: list[str]) -> None:
    assert expand(Task(with_sequence=sequence)) == items


@pytest.mark.parametrize(
    "sequence",
    [
        Sequence(),
        Sequence(count="x"),
        Sequence(count="1", format="%s%d"),
        Sequence(count="1", format="%"),
        Sequence(count="1", format="%999999999d"),
        Sequence(end="999999999999"),
    ],
)
def test_a_sequence_without_sense_is_refused(sequence: Sequence) -> None:
    with pytest.raises(ManifestError):
        expand(Task(with_sequence=sequence))


def test_item_keys_are_looked_up_and_unknown_ones_are_errors() -> None:
    lookup = item_lookup({"a": [1], "b": "x"})
    assert fill("{{item.a}} {{item.b}} {{other}}", lookup) == "[1] x {{other}}"
    with pytest.raises(ManifestError):
        fill("{{item.c}}", lookup)
    with pytest.raises(ManifestError):
        fill("{{item.c}}", item_lookup("scalar"))


def test_compact_json_has_no_blanks_and_sorted_keys() -> None:
    assert compact_json([{"b": None, "a": "ü\n"}, True, 0.5]) == '[{"a":"ü\\n","b":null},true,0.5]'


# -- $(VAR) ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(mktemp)", "$(mktemp)"),
        ('$(dirname "$2")', '$(dirname "$2")'),
        ("$A ${A} $", "$A ${A} $"),
    ],
)
def test_variables_expand_as_on_kubernetes(text: str, expanded: str) -> None:
    assert expand_variables(text, {"A": "1", "B": "2"}) == expanded
