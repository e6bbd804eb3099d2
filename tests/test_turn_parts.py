"""Every key of a turn is used, or named as not used, or its row is refused."""

import json

import pytest

from harness.data import load_task
from harness.data.formats import every_turn
from harness.data.text_files import Row, Rows
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.spec import Task

CALL = '{"name": "track", "arguments": {"order": 7}}'
FLAT = {"name": "track", "arguments": {"order": 7}}
NESTED = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"order": 7}'}}
USE = {"type": "tool_use", "id": "t1", "name": "track", "input": {"order": 7}}


@pytest.fixture
def load(tmp_path):
    def load_rows(*rows, **data):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return load_task(Task.model_validate({"name": "t", "data": {"test": str(path), **data}}), 0)

    return load_rows


def talk(*turns):
    return {"messages": [{"role": "user", "content": "Where is order 7?"}, *turns]}


@pytest.mark.parametrize(
    "turn",
    [
        {"content": "Let me look.", "tool_calls": [NESTED]},
        {"content": "Let me look.", "tool_calls": [FLAT]},
        {"content": "Let me look.", "tool_calls": json.dumps([FLAT])},
        {"content": "Let me look.", "tool_calls": json.dumps(NESTED)},
        {"content": "Let me look.", "tool_calls": FLAT},
        {"content": "Let me look.", "tool_calls": [json.dumps(NESTED)]},
        {"content": "Let me look.", "tool_calls": [{"function": json.dumps(FLAT)}]},
        {"content": "Let me look.", "tool_calls": [{**FLAT, "function": None, "parameters": None}]},
        {"content": "Let me look.", "function_call": {"name": "track", "arguments": '{"order": 7}'}},
        {"content": "Let me look.", "function_call": CALL},
        {"content": [{"type": "text", "text": "Let me look."}, USE]},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Let me look."}, USE]},
        {"parts": [{"text": "Let me look."}, {"functionCall": {"name": "track", "args": {"order": 7}}}]},
        {"content": None, "refusal": "Let me look.", "tool_calls": [FLAT]},
    ],
)
@pytest.mark.parametrize("place", ["last", "middle", "own layout"])
def test_a_call_of_a_tool_is_read_in_every_form_and_at_every_place(load, turn, place):
    called = {"role": "assistant", **turn}
    result = {"role": "tool", "tool_call_id": "c1", "content": "at sea"}
    said = f"Let me look.\n{CALL}"
    if place == "last":
        assert load(talk(called)).test[0].references == (said,)
        return
    end = {"role": "assistant", "content": "It is at sea."}
    row = talk(called, result, end) if place == "middle" else {**talk(called, result), "reference": "x"}
    messages = load(row).test[0].messages
    assert [m["content"] for m in messages] == ["Where is order 7?", said, "at sea"]


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "at sea"}]},
            "at sea",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "tool_result", "content": [{"type": "text", "text": "at sea"}]}],
            },
            "at sea",
        ),
        ({"role": "tool", "content": {"place": "sea"}}, '{"place": "sea"}'),
        ({"role": "tool", "content": [{"place": "sea"}]}, '[{"place": "sea"}]'),
        (
            {
                "role": "function",
                "parts": [{"functionResponse": {"name": "t", "response": {"place": "sea"}}}],
            },
            '{"place": "sea"}',
        ),
    ],
)
def test_what_a_tool_returned_is_shown(load, turn, text):
    row = talk({"role": "assistant", "tool_calls": [FLAT]}, turn, {"role": "assistant", "content": "At sea."})
    assert load(row).test[0].messages[-1] == {"role": "user", "content": text}


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_and_names_are_named_as_not_used_with_their_turns(load, tmp_path, key):
    answer = {"role": "assistant", "content": "At sea.", key: "Ships sail."}
    row = {"messages": [{"role": "user", "name": "Ann", "content": "Where?", "tool_call_id": "1"}, answer]}
    (said,) = (line for line in load(row, row).read_as if "keys of turns" in line)
    assert said.partition(": ")[2].startswith(
        f"keys of turns that are not used: 'name' (2 turns), {key!r} (2 turns); thoughts are neither shown"
    )
    found = examine_rows(RowCheck([str(tmp_path / "rows.jsonl")])).findings
    assert [f.severity for f in found if "keys of turns" in f.title] == ["warning"]


@pytest.mark.parametrize(
    ("turn", "found"),
    [
        ({"tool_calls": "look it up"}, "'tool_calls' of another form"),
        ({"tool_calls": [{"tool": "track"}]}, "'tool_calls' of another form"),
        (
            {"content": "", "reasoning_content": "Hm."},
            "a turn of 'assistant' without text, but with reasoning_content",
        ),
        ({"content": ""}, "a turn of 'assistant' without text, and turns behind it"),
        ({"content": "See.", "images": ["a.png"]}, "images in a turn of 'assistant'"),
        (
            {"content": [{"image": "a.png"}, {"text": "See."}]},
            "an image part (image) in a turn of 'assistant'",
        ),
        (
            {"content": [{"type": "document", "source": {}}]},
            "a part that is not text (document) in a turn of 'assistant'",
        ),
    ],
)
def test_a_turn_that_cannot_be_shown_whole_is_refused(load, turn, found):
    row = talk(
        {"role": "assistant", **turn},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "x"},
    )
    with pytest.raises(UserError) as refusal:
        load(row)
    assert refusal.value.problems[0].found == found


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": False}, {"training": "false"}])
def test_a_turn_that_is_not_to_be_trained_on_is_only_read(load, flag):
    first, last = ({"role": "assistant", "content": text} for text in ("No.", "Yes."))
    row = talk({**first, **flag}, {"role": "user", "content": "Sure?"}, last)
    (made,) = every_turn(Rows("rows.jsonl", "rows", [Row("rows.jsonl:1", row)])).rows
    assert made.fields["id"] == "rows-0-3"
    assert [m["content"] for m in load(row).test[0].messages][1] == "No."
    with pytest.raises(UserError, match="a last answer that is not to be trained on"):
        load(talk({**first, **flag}))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
        {"conversations": [{"from": "Human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
        {
            "prompt": [{"role": "user", "content": "Who?"}],
            "completion": [{"role": "assistant", "content": "Me."}],
        },
        {"prompt": "Who?", "chosen": "Me.", "rejected": "No."},
        {"instruction": "Who?", "output": "Me."},
        {"messages": [{"role": "user", "content": "Who?"}], "reference": "Me."},
    ],
)
@pytest.mark.parametrize(
    "system", [{"system": "Be brief."}, {"system_prompt": [{"type": "text", "text": "Be brief."}]}]
)
def test_a_system_prompt_in_a_column_stands_in_front_in_every_layout(load, row, system):
    item = load({**row, **system}).test[0]
    assert [m["content"] for m in item.messages] == ["Be brief.", "Who?"]


def test_the_history_of_an_instruction_is_asked_before_it(load):
    row = {"instruction": "And now?", "output": "At home.", "history": [["Where?", "At sea."]]}
    assert [m["content"] for m in load(row).test[0].messages] == ["Where?", "At sea.", "And now?"]


def test_answers_that_differ_in_their_calls_are_no_duplicates(tmp_path):
    rows = [
        talk(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"name": "track", "arguments": {"order": i // 2}}],
            }
        )
        for i in range(2)
    ]
    rows += [talk({"role": "assistant", "content": "", "tool_calls": [{"name": "stop", "arguments": {}}]})]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = examine_rows(RowCheck([str(path)])).table
    assert [entry.qa.answers[0] for entry in table.entries] == [
        '{"name": "track", "arguments": {"order": 0}}',
        '{"name": "track", "arguments": {"order": 0}}',
        '{"name": "stop", "arguments": {}}',
    ]
