"""New questions with their answers, by a model that was shown rows: what is kept, marked, left out and resumed."""

import json
import re
from pathlib import Path

import pytest
import tiny_experiment
from edited_rows import ASKED, jsonl, manifest, read, read_refusal, rows_of, run_data, split_rows
from openai_server import Rule, ServerAnswer, serve_model

from harness.data import load_task
from harness.data.edit.dedup import dedup
from harness.spec import Task

WORDS = "amber basil cedar delta ember fable grove hazel ivory jolly kiosk lilac".split()
LABELS = ("late", "money")
BY = ("--by", "new-questions")


def question(i):
    return f"Where is {WORDS[i]} number {i}?"


def rows(n=10):
    return [{"text": question(i), "label": LABELS[i % 2], "n": i, "shop": "north"} for i in range(n)]


def last_shown(messages):
    """Return the index of the row that a request shows last."""
    return int(re.findall(r"\d+", messages[-2]["content"])[0])


def new_question(i):
    return f"{WORDS[-1 - i]} and {WORDS[i]} came broken, who pays for the {'abcdefghijkl'[i] * 4}?"


def write_new(messages):
    i = last_shown(messages)
    answer = LABELS[i % 2].upper()
    return f"Sure!\n\n**Question:** {new_question(i)}\n**Answer:** {answer}\n\nQuestion: and more"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a writer; the working folder is empty, and nothing was asked before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with serve_model(Rule(write_new)) as found:
        yield found


@pytest.fixture
def write_questions(data, server):
    """Return a function that writes new questions from a file by the server."""
    return lambda *words: data("augment", *words, *BY, "--with", server.url, "--model", "tiny")


@pytest.mark.parametrize(
    ("written", "answered"),
    [
        ("Sure! Here is a new question:\n\nQuestion: {q}\nAnswer: **Yes**, from nine.", "**Yes**, from nine."),
        ("Another question: \n\n**Question:** {q}\n\n**Answer:** * two\n* three\n\nI hope this helps!", "* two\n* three"),
    ],
)  # fmt: skip
def test_what_a_model_says_around_a_question_is_no_part_of_it(write_questions, server, written, answered):
    server.model = Rule(lambda messages: written.format(q=new_question(last_shown(messages))))
    asked = [{"text": question(i), "answer": f"In the {WORDS[i]} hall, door {i}."} for i in range(10)]
    jsonl(Path("t.jsonl"), asked)
    run_data(write_questions, "t.jsonl", "--out", "new.jsonl")
    made = read("new.jsonl")[1]
    assert (made["text"], made["answer"]) == (new_question(0), answered)


def test_a_new_question_stands_with_its_answer_and_its_origin_behind_the_row_that_was_shown_last(
    write_questions, server
):
    jsonl(Path("t.jsonl"), [{**row, "id": f"r{i}"} for i, row in enumerate(rows())])
    said = run_data(write_questions, "t.jsonl", "--out", "new.jsonl")
    own, made = read("new.jsonl")[:2]
    assert own == {**rows()[0], "id": "r0"}
    origins = json.loads(made.pop("augmented_from"))
    # `n` differs between the rows that were shown, so nobody knows it; the answer has the label's spelling.
    expected = {"text": new_question(0), "label": "late", "shop": "north", "id": "r0-augmented-1"}
    assert made == {**expected, "source": "augmented"}
    assert origins[0] == question(0)
    assert len(set(origins)) == 4
    messages = next(m for _, body in server.asked if last_shown(m := body["messages"]) == 0)
    assert [m["role"] for m in messages] == ["user", "assistant"] * 4 + ["user"]
    assert all(any(f"Question: {text}\n" in m["content"] for m in messages) for text in origins)
    assert messages[0]["content"].startswith("Each answer is one of: late; money\n\nWrite a question")
    assert "10 added: a row by new-questions" in said
    assert manifest("new.jsonl")["parameters"]["who_answers"]["model"] == "tiny"


class Careless:
    """Writes what cannot be used, each time for another reason."""

    def chat(self, messages, body):
        said = {
            0: f"Question: {question(5)}\nAnswer: money",
            1: f"Question: {new_question(2)}\nAnswer: late",
            2: f"Question: {new_question(2)}\nAnswer: late",
            3: "Question: when does the shop in the old town open on Sundays?\nAnswer: late",
            4: " ",
            5: "I cannot do that.",
            6: "Question: Why is it closed?\nAnswer: on time",
            7: f"Question: {question(6)}\nAnswer: money",
        }
        i = last_shown(messages)
        return ServerAnswer(said.get(i) or write_new(messages), "length" if i == 8 else "stop")


def test_what_repeats_contradicts_is_evaluated_empty_or_of_an_unknown_label_is_left_out_with_its_reason(
    write_questions, server
):
    server.model = Careless()
    jsonl(Path("t.jsonl"), rows())
    tested = {"text": "When does the shop in the old town open on sundays", "label": "late"}
    jsonl(Path("test.jsonl"), [tested])
    said = run_data(write_questions, "t.jsonl", "--out", "new.jsonl", "--against", "test.jsonl")
    reasons = manifest("new.jsonl")["reasons"]
    assert reasons == {
        "dropped: a new question: a duplicate": 2,
        "added: a row by new-questions": 3,
        "dropped: a new question that is evaluated": 1,
        "dropped: a new question that is empty": 1,
        "dropped: a new question that lacks a question or its answer": 1,
        "dropped: a new question that has an answer that is none of the labels": 1,
        "dropped: a new question: another answer to the question": 1,
    }
    assert "3 added, 7 dropped" in said or "7 dropped, 3 added" in said
    evaluated = next(row for row in manifest("new.jsonl")["rows"] if "is evaluated" in row["reason"])
    assert evaluated["of"] == "test.jsonl:1"


class Priced:
    """Writes as a good writer, and says that it has read 300 tokens."""

    def chat(self, messages, body):
        return ServerAnswer(write_new(messages), n_prompt=300)


def test_an_interrupted_command_asks_the_rest_alone_and_writes_the_same_bytes(
    write_questions, server, tmp_path, monkeypatch
):
    server.model = Priced()
    jsonl(Path("t.jsonl"), rows())
    words = ("--prices", "100,1000", "--max-new-tokens", "10", "--variants", "2")
    code, _, error = write_questions("t.jsonl", "--out", "one.jsonl", *words, "--max-cost", "0.2")
    assert (code, Path("one.jsonl").exists()) == (1, False)
    assert "--max-cost is 0.2" in error
    before = len(server.asked)
    assert 0 < before < 20
    run_data(write_questions, "t.jsonl", "--out", "one.jsonl", *words)
    assert len(server.asked) == 20
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "other-cache"))
    run_data(write_questions, "t.jsonl", "--out", "two.jsonl", *words)
    assert len(server.asked) == 40
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()
    assert manifest("one.jsonl")["cost_usd"] == manifest("two.jsonl")["cost_usd"] > 0


def test_a_dry_run_says_how_many_requests_it_takes_and_sends_none(write_questions, server):
    jsonl(Path("t.jsonl"), rows())
    said = run_data(write_questions, "t.jsonl", "--dry-run", "--variants", "3", "--rows", "4")
    assert "4 of 10 rows to write new questions from" in said
    assert "12 requests" in said
    assert server.asked == []


TURNS = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Here."}]


@pytest.mark.parametrize(
    ("row", "words", "said"),
    [
        ({"prompt": "Who?", "chosen": "I", "rejected": "You"}, (), "one answer as a text to one question"),
        ({"messages": TURNS * 2}, (), "one answer as a text to one question"),
        (rows(1)[0], ("--instruction", "Harder: {text}"), "an instruction for new-questions"),
        (rows(1)[0], ("--variants", "2", "--temperature", "0"), "answers that can differ"),
        (rows(1)[0], ("--against", "t.jsonl"), "1 of them evaluated"),
    ],
)
def test_rows_that_cannot_be_shown_and_options_that_do_not_fit_are_refused(write_questions, row, words, said):
    jsonl(Path("t.jsonl"), [row])
    assert said in read_refusal(write_questions, "t.jsonl", "--out", "new.jsonl", *words)


@pytest.mark.parametrize("form", ["messages", "numbers", "context"])
def test_a_new_question_is_written_in_the_form_of_its_row(write_questions, server, form):
    def row(i):
        turns = [{"role": "user", "content": question(i)}, {"role": "assistant", "content": "By the gate."}]
        if form == "messages":
            return {"messages": turns}
        if form == "numbers":
            return {"text": question(i), "label": i % 2}
        return {"context": f"Page {i // 5}.", "instruction": question(i), "response": f"By gate {WORDS[i]}."}

    server.model = Rule(lambda m: f"Question: {new_question(last_shown(m))}\nAnswer: 1")
    jsonl(Path("t.jsonl"), [row(i) for i in range(10)])
    run_data(write_questions, "t.jsonl", "--out", "new.jsonl")
    found = read("new.jsonl")
    made = {i: one for i, one in enumerate(found) if one.get("augmented_from")}
    assert len(made) == 10
    for at, new in made.items():
        before = found[at - 1]
        if form == "messages":
            assert [m["role"] for m in new["messages"]] == ["user", "assistant"]
            assert new["messages"][1]["content"] == "1"
        elif form == "numbers":
            assert new["label"] == 1
        else:
            assert (new["context"], new["response"]) == (before["context"], "1")
            shown = json.loads(new["augmented_from"])
            assert {WORDS.index(text.split()[2]) // 5 for text in shown} == {int(before["context"][5])}


def make_new_rows(n=20):
    """Return rows, each followed by one that was made from it and from the next."""
    own = [{"text": f"{i * i} q{i}w v{i}u", "label": "ab"[i % 2], "n": i} for i in range(n)]
    origins = [json.dumps([own[i]["text"], own[(i + 1) % n]["text"]]) for i in range(n)]
    texts = [f"z{i}k {i * i} y{i}m x{i}p" for i in range(n)]
    made = [{**own[i], "text": texts[i], "label": "a", "augmented_from": origins[i]} for i in range(n)]
    return [row for pair in zip(own, made, strict=True) for row in pair]


@pytest.mark.parametrize("seed", range(3))
def test_a_row_made_from_several_is_trained_on_only_where_all_of_them_are(seed):
    found = split_rows(rows_of(*make_new_rows()), (0.6, 0.2, 0.2), seed=seed)
    train = [row.fields for row in found.parts["train"]]
    own = {row["n"] for row in train if "augmented_from" not in row}
    assert {row["n"] for row in train if "augmented_from" in row} == {i for i in own if (i + 1) % 20 in own}
    assert not any("augmented_from" in r.fields for name in ("validation", "test") for r in found.parts[name])


def test_a_row_made_from_several_goes_with_any_that_dedup_drops():
    content = rows_of(*make_new_rows(6))
    tested = rows_of({"text": content[2].fields["text"], "label": "a"})
    outcomes = dedup(content, ASKED, against=[(tested[0], ASKED)])
    assert [i for i, outcome in enumerate(outcomes) if outcome.row is None] == [1, 2, 3]


def test_the_marks_of_a_made_row_are_no_columns_that_a_task_should_read(tmp_path):
    made = [{**row, "source": "augmented"} if "augmented_from" in row else row for row in make_new_rows(30)]
    own = [{key: value for key, value in row.items() if key != "n"} for row in made]
    jsonl(tmp_path / "rows.jsonl", own)
    fields = {"prompt": "{text}", "reference": "{label}"}
    task = {"name": "letters", "data": {"all": str(tmp_path / "rows.jsonl")}, "fields": fields}
    said = load_task(Task.model_validate({**task, "metrics": ["exact_match"]}), seed=0).read_as
    assert said
    assert not any("augmented_from" in note or "not read" in note for note in said)


def test_a_model_that_runs_here_is_asked_by_its_chat_template_and_what_it_fails_at_is_said(
    tiny, tmp_path, own_cache, command
):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: prompt\n")
    source, out = tmp_path / "suites" / "letters" / "train.jsonl", tmp_path / "new.jsonl"
    words = ("data", "augment", str(source), "-c", str(path), "--out", str(out), "--with", "prompt", *BY)
    code, _, error = command(*words, "--rows", "3", "--max-new-tokens", "4")
    assert code == 2
    assert "3 of 30 rows to write new questions from by prompt" in error
    why = "a new question that failed: a prompt longer than the context"
    assert f"found 3 new questions, and none can be used: {why}" in error
    assert not out.exists()
