"""Rows in other tools' formats become items without templates; one file becomes three splits."""

import json
import re
from pathlib import Path

import pytest
from checked_rows import list_cases, write
from conftest import find_shared_data, refused

from harness.data import formats, load_task
from harness.errors import UserError
from harness.spec import Task

ASKED = {"role": "user", "content": "Who?"}
BRIEF = {"role": "system", "content": "Be brief."}
SAID = {"role": "assistant", "content": "Me."}


def tree(question, second, first, third):
    """Return an OASST message with three ranked replies and one that was deleted."""
    ranks = {second: 1, first: 0, third: 2, "x": 0}
    replies = [
        {"text": text, "role": "assistant", "rank": rank, "deleted": text == "x", "replies": []}
        for text, rank in ranks.items()
    ]
    return {"message_id": "m", "text": question, "role": "prompter", "lang": "en", "replies": replies}


ROWS = {
    "Alpaca": {"instruction": "Who?", "input": "", "output": "Me."},
    "Dolly": {"instruction": "Who?", "context": "", "response": "Me.", "category": "open_qa"},
    "mirror of Dolly": {"instruction": "Who?", "category": "open_qa", "input": "", "output": "Me."},
    "ShareGPT": {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
    "chat": {"messages": [ASKED, SAID]},
    "prompt and completion": {"prompt": "Who?", "completion": "Me."},
    "conversational completion": {"prompt": [ASKED], "completion": [SAID]},
    "question": {"question": "Who?", "answer": "Me."},
    "SQuAD": {"question": "Who?", "answers": {"text": ["Me.", "Me."], "answer_start": [0, 4]}},
    "preference as texts": {"prompt": "Who?", "chosen": "Me.", "rejected": "No."},
    "preference of questions": {"question": "Who?", "chosen": "Me.", "rejected": "No."},
    "preference as turns": {"chosen": [ASKED, SAID], "rejected": [ASKED, {**SAID, "content": "No."}]},
    "preference as last turns": {"prompt": [ASKED], "chosen": [SAID], "rejected": [{**SAID, "content": "No."}]},
    "OpenAI preference": {
        "input": {"messages": [ASKED], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [SAID],
        "non_preferred_output": [{**SAID, "content": "No."}],
    },
    "OpenAI with parts": {
        "messages": [{**ASKED, "content": [{"type": "text", "text": "Who?"}]}, {**SAID, "weight": 1}],
    },
    "FLAN": {"inputs": "Who?", "targets": "Me.", "task": "qa"},
    "MMLU": {"question": "Who?", "choices": ["Me.", "You."], "answer": 0},
    "ARC": {"question": "Who?", "choices": {"text": ["You.", "Me."], "label": ["1", "2"]}, "answerKey": "2"},
    "OpenBookQA": {"question_stem": "Who?", "choices": {"text": ["You.", "Me."]}, "answerKey": "B"},
    "lm-eval": {"query": "Who?", "choices": ["Me.", "You."], "gold": 0},
    "MedQA": {"question": "Who?", "options": {"A": "You.", "B": "Me."}, "answer": "Me.", "answer_idx": "B"},
    "RACE": {"question": "Who?", "options": ["You.", "Me."], "answer": "B"},
    "C-Eval": {"question": "Who?", "A": "You.", "B": "Me.", "C": None, "answer": "B"},
    "choices and a text": {"question": "Who?", "choices": ["You.", "Me."], "answer": "Me."},
    "UltraFeedback": {
        "source": "evol_instruct", "instruction": "Who?", "models": ["a", "b", "c"],
        "completions": [
            {"model": "a", "response": "You.", "overall_score": 10, "fine-grained_score": 2.5},
            {"model": "b", "response": "Me.", "overall_score": 8, "fine-grained_score": 4.75},
            {"model": "c", "response": "No.", "overall_score": 1, "fine-grained_score": 1.0},
        ],
    },
    "OASST": {
        "message_tree_id": "t", "tree_state": "ready_for_export", "prompt": tree("Who?", "You.", "Me.", "No."),
    },
    "preference of LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "Who?"}],
        "chosen": {"from": "gpt", "value": "Me."}, "rejected": {"from": "gpt", "value": "No."},
    },
    "transcript": {
        "chosen": "\n\nHuman: Who?\n\nAssistant: Me.", "rejected": "\n\nHuman: Who?\n\nAssistant: No.",
    },
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """Function that loads files by part; other arguments are settings of the data or of the task."""

    def load_parts(data=None, fields=None, seed=0, labels=(), **parts):
        files = {part: write(tmp_path / f"{part}.jsonl", rows) for part, rows in parts.items()}
        task = {"name": "tiny", "data": {**files, **(data or {})}, "fields": fields or {}, "labels": labels}
        return load_task(Task.model_validate(task), seed)

    return load_parts


def list_problems(load, **parts):
    error = refused(load, **parts)
    return [(problem.where.rpartition("/")[2], problem.found, problem.expected) for problem in error.problems]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_another_tool_becomes_a_question_and_its_answer(load, name):
    example = load(test=[ROWS[name]]).test[0]
    assert (example.messages, example.references) == ((ASKED,), ("Me.",))
    assert example.slice == ("open_qa" if "Dolly" in name else "")
    if name in ("MedQA", "RACE", "C-Eval"):
        assert example.choices == ("You.", "Me.")


def test_every_layout_that_is_read_stands_in_the_docs():
    docs_page = Path(__file__).parents[2] / "docs" / "howto" / "data.md"
    documented_names = set(re.findall(r"^\| ([\w &-]+) \| ", docs_page.read_text("utf-8"), re.MULTILINE))
    missing_names = {layout.name for layout in formats.LAYOUTS} - documented_names
    assert missing_names == set(), f"add a row to the formats in {docs_page}, and one to ROWS above"


AGAIN = {"role": "user", "content": "Sure?"}
YES = {**SAID, "content": "Yes."}
PARTS = [{"type": "text", "text": "What is"}, {"type": "input_text", "text": "it?"}]
ABOUT = {"instruction": "Translate.", "input": "chat", "output": "cat"}
CONTEXT = {"context": "It is I.", "question": "Who?", "answers": ["I"]}
TEMPLATE = {"prompt": "Do: {instruction}", "reference": "{score}"}
REACHES = {"prompt": "{q}", "reference": "{a.text}"}


def say(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("row", "fields", "messages", "references"),
    [
        (ABOUT, {}, [say("Translate.\n\nchat")], ("cat",)),
        (CONTEXT, {}, [say("Context:\nIt is I.\n\nWho?")], ("I",)),
        ({"question": "Who?", "options": '["You.", "Me."]', "answer": "B"}, {}, [ASKED], ("Me.",)),
        ({**ROWS["ShareGPT"], "system": "Be brief."}, {}, [BRIEF, ASKED], ("Me.",)),
        ({"messages": [BRIEF, ASKED, SAID]}, {}, [BRIEF, ASKED], ("Me.",)),
        ({"messages": [ASKED, SAID, AGAIN, YES]}, {}, [ASKED, SAID, AGAIN], ("Yes.",)),
        ({"messages": [{**ASKED, "content": PARTS}, SAID]}, {}, [say("What is\nit?")], ("Me.",)),
        # Templates win over a layout; one template leaves the other field to the layout.
        ({**ROWS["Alpaca"], "score": 3}, TEMPLATE, [say("Do: Who?")], ("3",)),
        (ROWS["SQuAD"], {"prompt": "Q: {question}"}, [say("Q: Who?")], ("Me.",)),
        ({"q": "Who?", "a": {"text": ["Me.", "I"]}}, REACHES, [ASKED], ("Me.", "I")),
    ],
)
def test_what_a_row_holds_besides_is_asked_in_its_place(load, row, fields, messages, references):
    (item,) = load(test=[row], fields=fields).test
    assert ([*item.messages], item.references) == (messages, references)


def test_the_layout_is_said_and_places_count_alike_in_all_files(load):
    remark = "read as Dolly rows (instruction, context (may be empty), response)"
    assert load(test=[ROWS["Dolly"]]).read_as[0].endswith(remark)

    rows = [{"question": f"{i}?", "choices": WORDS, "answer": i} for i in range(1, 5)]
    items = load(train=rows[:3], test=rows[3:], validation=[{**rows[0], "question": "5?"}])
    assert [item.references[0] for item in (*items.train, *items.validation, *items.test)] == [*"wxyw", "z"]
    assert all("numbers are places from 1" in note for note in items.read_as)


WORDS = ("w", "x", "y", "z")
PLACES = {
    "from 1": (WORDS, [1, 2, 4], "wxz"), "from 0": (WORDS, [0, 2, 3], "wyz"),
    "numbers and labels": (WORDS, [4, "B", "c", "(D)", "x", 1], "zxyzxw"),
    "the choices themselves": (("2", "4", "6"), [2, 4, "6"], "246"),
    "undecided": (
        WORDS, [1, 2, 3], "which is 'x' if answers are places from 0 and 'w' if they are places from 1",
    ),
    "a label or a choice": (
        ("B", "A"), ["A"], "which is 'A' if answers are choices and 'B' if they are labels",
    ),
    "negative": (WORDS, [0, -1], "-1 in 'answer'"), "too large": (WORDS, [0, 9], "9 in 'answer'"),
}  # fmt: skip


@pytest.mark.parametrize(("choices", "answers", "right"), PLACES.values(), ids=PLACES)
def test_what_numbers_beside_choices_are_is_found_over_all_rows(load, choices, answers, right):
    rows = [{"question": f"{i}?", "choices": choices, "answer": answer} for i, answer in enumerate(answers)]
    if isinstance(right, str) and len(right) > len(answers):
        ((_, problem, _),) = list_problems(load, test=rows)
        assert right in problem
    else:
        assert [item.references[0] for item in load(test=rows).test] == [*right]


def test_a_task_says_from_where_places_count_as_the_refusal_writes_it(load):
    counting, right = "places from 0", "xyz"
    rows = [{"question": f"{i}?", "choices": WORDS, "answer": i} for i in (1, 2, 3)]
    with pytest.raises(UserError, match=f"answers_are: .*{counting}.* under fields: of the task"):
        load(test=rows)
    assert [item.references[0] for item in load(test=rows, fields={"answers_are": counting}).test] == [*right]


OF_PAIRS = ("preference", "transcript", "OpenAI pref", "Ultra", "OASST")


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith(OF_PAIRS)])
def test_a_preference_row_becomes_a_pair(load, name):
    pair = load(test=[{"prompt": "x", "reference": "y"}], pairs=[ROWS[name]]).pairs[0]
    assert (pair.messages, pair.references, pair.rejected) == ((ASKED,), ("Me.",), "No.")


def test_templates_that_name_no_field_are_refused_and_unusable_rows_removed_where_the_task_says_so(load):
    rows = [ROWS["Alpaca"], {"instruction": "Who?", "output": "Me.", "extra": "x"}]
    fields = {"prompt": "{instruction} {extra}", "reference": "{output}"}
    problems = list_problems(load, test=rows, fields=fields)
    assert [(where, problem) for where, problem, _ in problems] == [("test.jsonl:1", "no field 'extra'")]

    rows = [ROWS["Alpaca"], {"instruction": "x"}, {**ROWS["Alpaca"], "output": " "}]
    items = load(test=rows, data={"invalid_rows": "drop"})
    assert len(items.test) == 1
    assert "2 of 3 rows dropped, invalid: fields instruction (1), an empty 'output' (1)" in items.removed[0]


@pytest.mark.parametrize(("rows", "line", "found"), list_cases("refused_rows.txt", "rows"))
def test_a_row_that_is_no_item_or_does_not_fit_its_layout_is_refused_at_its_line(load, rows, line, found):
    rows, where = json.loads(rows), f"test.jsonl:{line}" if line != "0" else "test.jsonl"
    assert list_problems(load, test=rows)[0][:2] == (where, found)
    if len(rows) == 1:
        with pytest.raises(UserError, match=re.escape(found)):  # no usable row is left
            load(test=rows, data={"invalid_rows": "drop"})


def test_trees_and_transcripts_are_read_along_what_they_share(load):
    replies = [{"text": "Yes.", "role": "assistant"}]
    root_message = tree("Who?", "You.", "Me.", "No.")
    follow_up = {"message_id": "n", "text": "Sure?", "role": "prompter", "replies": replies}
    root_message["replies"][1]["replies"] = [follow_up]
    row = {"message_tree_id": "t", "prompt": root_message}
    loaded = load(test=[row], pairs=[{**row, "prompt": tree("Where?", "Here.", "There.", "No.")}])
    assert loaded.test[0].messages == (ASKED, SAID, AGAIN)
    assert loaded.test[0].references == ("Yes.",)
    assert (loaded.pairs[0].references, loaded.pairs[0].rejected) == (("There.",), "No.")

    opening = "\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Sure?\n\nAssistant:"
    pair = {"chosen": f"{opening} Yes, quite.", "rejected": f"{opening} Yes, no."}
    loaded_pair = load(test=[ROWS["chat"]], pairs=[pair]).pairs[0]
    assert loaded_pair.messages == (ASKED, SAID, {"role": "user", "content": "Sure?"})
    assert (loaded_pair.references, loaded_pair.rejected) == (("Yes, quite.",), "Yes, no.")


def test_all_turns_of_a_conversation_are_trained_on_and_stay_together(load):
    skipped_turn = {**SAID, "content": "Hm.", "weight": 0}
    turns = [BRIEF, ASKED, SAID, AGAIN, skipped_turn, AGAIN, YES]
    rows = [{"messages": turns}, {"id": "b", "messages": [say("Why?"), SAID]}]
    test = [{"messages": [say("When?"), SAID]}]
    loaded = load(train=rows, test=test, data={"turns": "all"})
    items = sorted((*loaded.train, *loaded.validation), key=lambda item: item.id)
    expected = [("b-1", "b", "Me."), ("train-0-2", "train-0", "Me."), ("train-0-6", "train-0", "Yes.")]
    assert [(item.id, item.cluster, *item.references) for item in items] == expected
    assert items[1].messages == (BRIEF, ASKED)
    assert items[2].messages == (BRIEF, ASKED, SAID, AGAIN, {**SAID, "content": "Hm."}, AGAIN)
    problems = list_problems(load, train=[ROWS["Alpaca"]], test=[ROWS["chat"]], data={"turns": "all"})
    assert problems[0][:2] == ("train.jsonl", "turns: all, and Alpaca rows")


@pytest.mark.parametrize(("rows", "line", "found"), list_cases("refused_rows.txt", "pairs"))
def test_a_pair_that_prefers_nothing_is_refused(load, rows, line, found):
    problems = list_problems(load, test=[ROWS["chat"]], pairs=json.loads(rows))
    assert problems[0][:2] == (f"pairs.jsonl:{line}", found)


def articles(n=12, per_article=5):
    def ask(a, i):
        article = {"article": f"Article_{a}", "context": f"Text {a} has part {i // 2}."}
        return {**article, "question": f"What is {i} of {a}?", "answers": [f"part {i}"]}

    return [ask(a, i) for a in range(n) for i in range(per_article)]


def test_one_file_is_split_by_article_label_and_question_whatever_the_seed(load):
    assert len({item.cluster for item in load(test=articles(1, 4)).test}) == 2
    items = load(all=articles(), fields={"cluster": "{article}"})
    sets = [{item.cluster for item in split} for split in (items.train, items.validation, items.test)]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 12
    assert len(items.train) + len(items.validation) + len(items.test) == 60
    assert 5 <= len(items.test) <= 15
    items = load(all=articles(), documents=articles())
    assert len(items.documents) == 12 * 3, "one of each context"
    assert all(item.documents for item in items.test)
    item = load(test=articles(1, 1), documents=[{"id": "kb", "text": "Else."}]).test[0]
    assert (item.prompt, item.documents) == ("What is 0 of 0?", ())

    rows = [{"prompt": f"What is {i}?", "reference": str(i)} for i in range(50)]
    seed_0, seed_1 = load(all=rows, seed=0), load(all=rows, seed=1)
    assert seed_0.test == seed_1.test
    assert seed_0.validation != seed_1.validation

    rows = [{"prompt": f"what is {i // 2}?", "reference": str(i)} for i in range(60)]
    items = load(all=rows)
    texts = [{item.prompt for item in split} for split in (items.train, items.validation, items.test)]
    assert sum(map(len, texts)) == 30

    rows = [{"prompt": f"What is {i}?", "reference": "rare" if i % 10 == 0 else "often"} for i in range(100)]
    items = load(all=rows, labels=["rare", "often"])
    for split, n_items in ((items.train, 64), (items.validation, 16), (items.test, 20)):
        assert len(split) == n_items
        assert 0.05 < sum(item.references == ("rare",) for item in split) / n_items < 0.15


def test_pairs_of_what_is_set_aside_are_left_out(load, tmp_path):
    template = "\n\nHuman: Who is {}?\n\nAssistant:"
    openings = [template.format(i) for i in range(50)]
    path = write(tmp_path / "pairs.jsonl", [{"chosen": f"{t} Me.", "rejected": f"{t} No."} for t in openings])
    items = load(data={"all": path, "pairs": path})
    assert [p.messages for p in items.pairs] == [item.messages for item in items.train]
    assert items.removed[0].endswith("18 pairs left out, set aside for validation or test")
    rows = [{"prompt": f"What is {i}?", "reference": "x", "cluster": f"c{i // 5}"} for i in range(50)]
    pairs = [{"prompt": f"Why {i}?", "chosen": "a", "rejected": "b", "cluster": f"c{i}"} for i in range(10)]
    items = load(all=rows, pairs=pairs)
    assert {pair.cluster for pair in items.pairs} == {item.cluster for item in items.train}


@pytest.mark.e2e
def test_hub_sets_are_read_from_their_copy_and_a_lacking_split_is_refused(monkeypatch):
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(find_shared_data("hub")))
    data = {"train": "hub:openai/gsm8k:main", "test": "hub:baber/piqa:default:validation"}
    fields = {"prompt": "{goal}", "reference": "{sol1}"}
    train_rows = load_task(Task.model_validate({"name": "t", "data": {**data, "test": data["train"]}}), 0)
    test = load_task(Task.model_validate({"name": "t", "data": {"test": data["test"]}, "fields": fields}), 0)
    assert train_rows.read_as[0].startswith("hub:openai/gsm8k:main: read as question rows")
    assert len(test.test) > 1000

    expected_text = r"Available splits: \['train', 'validation'\].*hub:owner/name:config:split"
    with pytest.raises(UserError, match=expected_text):
        load_task(Task.model_validate({"name": "t", "data": {"test": "hub:baber/piqa"}}), 0)


WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALLED = [{"function": {"name": "weather", "arguments": "{}"}}]
CALL = {"role": "assistant", "content": None, "tool_calls": CALLED}


@pytest.mark.parametrize(
    "tools",
    [
        {"tools": [{"type": "function", "function": WEATHER}]},
        {"tools": json.dumps([WEATHER])},
        {"tools": [{"functionDeclarations": [WEATHER]}]},
    ],
)
def test_tools_that_a_row_defines_stand_in_its_system_message_with_the_form_of_a_call(load, tools):
    (system_turn, question) = load(test=[{"messages": [ASKED, CALL], **tools}]).test[0].messages
    instruction, *tool_lines = system_turn["content"].splitlines()
    assert (system_turn["role"], question) == ("system", ASKED)
    assert instruction.startswith('You can call these tools. A call is a line of JSON: {"name": ')
    assert [json.loads(line) for line in tool_lines] == [WEATHER]


def test_rows_of_xlam_and_openais_preferences_ask_for_calls_of_their_tools(load):
    calls = json.dumps([{"name": "weather", "arguments": {"city": name}} for name in ("Bern", "Rome")])
    query = {"query": "Who?", "tools": json.dumps([WEATHER])}
    some, uncalled = load(test=[{**query, "answers": calls}, {**query, "query": "Hm?", "answers": "[]"}]).test
    assert [turn["role"] for turn in some.messages] == ["system", "user"]
    assert some.references == ("\n".join(json.dumps(call) for call in json.loads(calls)),)
    assert uncalled.references == ("[]",)

    row = ROWS["OpenAI preference"]
    row = {**row, "input": {**row["input"], "tools": [WEATHER]}}
    (pair,) = load(pairs=[row], test=[{"inputs": "1?", "targets": "2"}]).pairs
    (item,) = load(test=[row]).test
    assert pair.messages == item.messages
    assert pair.messages[0]["content"].endswith(json.dumps(WEATHER))


def test_a_column_that_is_only_named_tools_adds_nothing_to_what_is_asked(load):
    assert load(test=[{"messages": [ASKED, SAID], "tools": "hammer"}]).test[0].messages == (ASKED,)
