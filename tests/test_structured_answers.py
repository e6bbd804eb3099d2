"""Answers with a structure: fields of JSON, JSON of a schema, calls of tools."""

import socket
import threading

import pytest

from harness.errors import Unscored, UserError
from harness.metrics import load_metrics
from harness.records import Example, Output
from harness.spec import Task, TaskData

SCHEMA = {
    "type": "object",
    "properties": {"queue": {"enum": ["billing", "delivery"]}, "days": {"type": "integer", "minimum": 0}},
    "required": ["queue"],
    "additionalProperties": False,
}
CALL = '{"name": "refund", "arguments": {"order": 17, "reason": "late"}}'


def score_answer(name, text, *references, constraints=()):
    metric = load_metrics(Task(name="t", data=TaskData(), metrics=(name,)))[name]
    parts = metric.score(Output(text), Example("e", (), references, constraints=constraints))
    return None if parts is None else parts[0]


@pytest.mark.parametrize(
    ("text", "f1"),
    [
        ('{"b": [1, 2], "a": "x"}', 1.0),
        ('```json\n{"a": "x", "b": [1.0, 2]}\n```', 1.0),
        ('{"a": "x", "b": [2, 1]}', 1 / 3),
        ('{"a": "x"}', 0.5),
        ('{"a": "x", "b": [1, 2], "c": null}', 6 / 7),
        ('{"a": "x", "b": ["1", 2]}', 2 / 3),
        ("the field a is x", 0.0),
        ("", 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_fields_count_by_path_and_value(text, f1):
    assert score_answer("json_fields", text, '{"a": "x", "b": [1, 2]}') == pytest.approx(f1)


def test_fields_are_those_of_the_nearest_reference_and_calls_in_any_order():
    assert score_answer("json_fields", '{"a": 2}', '{"a": 1}', '{"a": 2}') == 1.0
    assert score_answer("json_fields", "{}", "billing") is None
    assert score_answer("tool_call", CALL, "billing") is None
    other = '{"name": "mail", "arguments": {}}'
    assert score_answer("tool_call", f"[{other}, {CALL}]", f"[{CALL}, {other}]") == 1.0


RIGHT_CALLS = [
    CALL,
    '{"arguments": {"reason": "late", "order": 17.0}, "name": "refund"}',
    f"[{CALL}]",
    f"I will do that.\n<tool_call>\n{CALL}\n</tool_call>",
    f"```json\n{CALL}\n```",
    '{"type": "function", "function": {"name": "refund", "arguments": "{\\"order\\": 17, \\"reason\\": \\"late\\"}"}}',
    '{"name": "refund", "parameters": {"order": 17, "reason": "late"}}',
    f"I will call it: {CALL}",
    f"{CALL} Done [1].",
    f"<tool_call>\n{CALL}",
    f"[TOOL_CALLS] [{CALL}]",
    '<|python_tag|>{"name": "refund", "parameters": {"order": 17, "reason": "late"}}',
    f"<|tool_call|>[{CALL}]",
    "[refund(order=17, reason='late')]",
    'refund(order=17, reason="late")',
    "```tool_code\nrefund(order=17, reason='late')\n```",
    f"```tool_call\n{CALL}\n```",
    '<function=refund>{"order": 17, "reason": "late"}</function>',
    (
        "<tool_call>\n<function=refund>\n<parameter=order>\n17\n</parameter>\n<parameter=reason>\nlate\n"
        "</parameter>\n</function>\n</tool_call>"
    ),
    (
        '{"tool_calls": [{"id": "1", "type": "function", "function": {"name": "refund", "arguments": '
        '"{\\"order\\": 17, \\"reason\\": \\"late\\"}"}}]}'
    ),
]
OTHER_CALLS = [
    '{"name": "refund", "arguments": {"order": "17", "reason": "late"}}',
    '{"name": "refund", "arguments": {"order": 17}}',
    '{"name": "pay", "arguments": {"order": 17, "reason": "late"}}',
    f"[{CALL}, {CALL}]",
    "[]",
    "refund(order=17)",
    "refund(17, 'late')",
    "[refund(order=17, reason='late'), refund(order=17, reason='late')]",
    "refund(order=order(), reason='late')",
    f"{CALL} {CALL}",
    '<function=refund>{"order": 17,</function>',
    '{"name": 3, "arguments": {}}',
    '"refund"',
    "",
]


@pytest.mark.parametrize("text", [*RIGHT_CALLS, *OTHER_CALLS])
def test_a_call_is_right_however_it_is_written_and_another_one_or_one_too_many_wrong(text):
    assert score_answer("tool_call", text, CALL) == float(text in RIGHT_CALLS)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"queue": "billing", "days": 3}', 1.0),
        ('```json\n{"queue": "delivery"}\n```', 1.0),
        ('{"queue": "sales"}', 0.0),
        ('{"queue": "billing", "days": -1}', 0.0),
        ('{"queue": "billing", "more": 1}', 0.0),
        ("queue: billing", 0.0),
    ],
)
def test_an_answer_keeps_a_json_schema_or_not(text, kept):
    assert score_answer("follows", text, constraints=({"kind": "json_schema", "schema": SCHEMA},)) == kept


@pytest.mark.parametrize(
    "text", ['{"days": NaN}', '{"days": Infinity}', '{"days": 1e999}', f'{{"more": {"[" * 900 + "]" * 900}}}']
)
def test_what_no_schema_can_be_checked_on_is_wrong_and_ends_no_scoring(text):
    nested = {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/nested"}}]}
    schema = {
        "properties": {"days": {"multipleOf": 0.5}, "more": {"$ref": "#/$defs/nested"}},
        "$defs": {"nested": nested},
    }
    assert score_answer(
        "follows", '{"days": 1.5, "more": [[]]}', constraints=({"kind": "json_schema", "schema": schema},)
    )
    assert score_answer("follows", text, constraints=({"kind": "json_schema", "schema": schema},)) == 0.0


def test_a_schema_that_is_none_or_would_be_fetched_is_refused():
    asked = []

    def listen(server):
        connection, asker = server.accept()
        asked.append(asker)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen, args=[server])
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        for schema in ({"type": "banana"}, {"$ref": address}):
            with pytest.raises(UserError, match="expected a JSON Schema"):
                score_answer("follows", "{}", constraints=({"kind": "json_schema", "schema": schema},))
        with socket.create_connection(server.getsockname()) as own:  # the first that is heard of
            thread.join()
            assert asked == [own.getsockname()]


@pytest.mark.e2e
def test_a_pattern_that_takes_for_ever_on_an_answer_leaves_it_unscored():
    schema = {"type": "string", "pattern": "^(a+)+$"}
    with pytest.raises(Unscored, match="one that takes at most 5 s"):
        score_answer("follows", f'"{"a" * 60}!"', constraints=({"kind": "json_schema", "schema": schema},))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("I cannot help with that.", 1.0),
        ("[]", 1.0),
        ('{"tool_calls": null, "content": "hi"}', 1.0),
        (CALL, 0.0),
        ("<tool_call>\n{", 0.0),
        ('{"name": "refund", "arguments": {', 0.0),
        ("", 0.0),
    ],
)
def test_where_no_call_is_right_words_alone_are(text, score):
    assert score_answer("tool_call", text, "[]") == score


@pytest.mark.parametrize(
    ("constraint", "text", "kept"),
    [
        ({"kind": "avoids", "words": ["苹果"]}, "我喜欢苹果。", False),
        ({"kind": "includes", "words": ["苹果"]}, "我喜欢苹果。", True),
        ({"kind": "includes", "words": ["りんご"]}, "私はりんごが好きです", True),
        ({"kind": "avoids", "words": ["cat"]}, "a category", True),
        ({"kind": "n_words", "min": 5, "max": 9}, "我喜欢吃苹果和香蕉", True),
        ({"kind": "n_words", "min": 5}, "苹果", False),
    ],
)
def test_words_of_scripts_without_blanks_are_found_within_a_text(constraint, text, kept):
    item = Example("1", (), constraints=(constraint,))
    (metric,) = load_metrics(Task(name="t", data=TaskData(), metrics=("follows",))).values()
    assert metric.score(Output(text), item) == (float(kept),)
