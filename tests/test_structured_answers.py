"""Answers with a structure: fields of JSON, JSON of a schema, calls of tools."""

import socket
import threading
from functools import reduce

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


def test_fields_are_those_of_the_nearest_reference_and_calls_in_any_order():
    assert score_answer("json_fields", '{"a": 2}', '{"a": 1}', '{"a": 2}') == 1.0
    assert score_answer("json_fields", "{}", "billing") is None
    assert score_answer("tool_call", CALL, "billing") is None
    other = '{"name": "mail", "arguments": {}}'
    assert score_answer("tool_call", f"[{other}, {CALL}]", f"[{CALL}, {other}]") == 1.0


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


def test_a_schema_too_deep_to_be_checked_is_refused_and_not_counted_as_wrong_answers():
    schema = reduce(lambda inner, _: {"type": "array", "items": inner}, range(200), {"type": "string"})
    with pytest.raises(UserError, match="a schema that is too deep; expected a JSON Schema"):
        score_answer("follows", "[]", constraints=({"kind": "json_schema", "schema": schema},))


@pytest.mark.e2e
def test_a_pattern_that_takes_for_ever_on_an_answer_leaves_it_unscored():
    schema = {"type": "string", "pattern": "^(a+)+$"}
    with pytest.raises(Unscored, match="one that takes at most 5 s"):
        score_answer("follows", f'"{"a" * 60}!"', constraints=({"kind": "json_schema", "schema": schema},))


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
