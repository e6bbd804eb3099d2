"""Augmentation by a model: paraphrases and new questions, written or dropped, and never evaluated."""

import json
import re
from pathlib import Path

import pytest
import tiny_experiment
from checked_rows import list_cases
from edited_rows import ASKED, jsonl, manifest, read, read_refusal, rows_of, run_data, split_rows
from openai_server import Rule, ServerAnswer, serve_model

from harness.data import load_task
from harness.errors import UserError
from harness.experiment.augmentation import WrittenQuestion, augment
from harness.records import parse_json
from harness.spec import Task

WORDS = "amber basil cedar delta ember fable grove hazel ivory jolly kiosk lilac".split()


def question(i):
    return f"Where is {WORDS[i]} number {i}?"


def reword_question(text):
    return f"Can somebody tell me what became of {' and '.join(re.findall(r'[a-z]+|[0-9]+', text)[2:])}, please look"


def rows(n=10, **more):
    return [{"text": question(i), "label": ("late", "money")[i % 2], **more} for i in range(n)]


def answer_rewording(messages):
    """Answer as a good writer would, except that the fourth row comes back unchanged."""
    text = messages[0]["content"].split("\n\n", 1)[1]
    return text if text == question(3) else f'"{reword_question(text)}"'


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a writer; the working folder and the cache are empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with serve_model(Rule(answer_rewording)) as served:
        yield served


@pytest.fixture
def augment_file(data, server):
    """Return a function that augments a file with the writer."""
    return lambda *words: data("augment", *words, "--with", server.url, "--model", "tiny")


def test_each_row_is_followed_by_the_row_that_was_made_from_it(augment_file):
    jsonl(Path("t.jsonl"), [{**row, "id": f"r{i}"} for i, row in enumerate(rows(6))])
    run_data(augment_file, "t.jsonl", "--out", "new.jsonl")
    new_rows = read("new.jsonl")
    assert [row["id"] for row in new_rows[:4]] == ["r0", "r0-augmented-1", "r1", "r1-augmented-1"]
    assert new_rows[0] == {"text": question(0), "label": "late", "id": "r0"}
    rewording = {"text": reword_question(question(0)), "label": "late", "id": "r0-augmented-1"}
    assert new_rows[1] == rewording | {"source": "augmented", "augmented_from": question(0)}
    assert len(new_rows) == 11


def test_the_manifest_keeps_the_prompts_and_says_why_a_rewording_was_left_out(augment_file):
    jsonl(Path("t.jsonl"), rows(6))
    options = ("--license", "CC0-1.0", "--note", "names are made up")
    run_data(augment_file, "t.jsonl", "--out", "new.jsonl", *options)
    saved = manifest("new.jsonl")
    assert saved["command"] == "harness data augment"
    assert "Write the text below in other words" in saved["parameters"]["prompts"][0]
    expected = {"read": 6, "written": 11, "dropped": 1, "changed": 0, "reported": 0, "added": 5}
    assert saved["counts"] | {"changed": 0, "reported": 0} == expected
    repeated = {"row": "t.jsonl:4", "change": "dropped", "reason": "a rewording that repeats its original"}
    assert repeated in saved["rows"]
    assert (saved["licenses"], saved["notes"]) == (["CC0-1.0"], ["names are made up"])


def test_a_back_translation_asks_for_the_other_language_and_then_back(data, server):
    jsonl(Path("t.jsonl"), rows(2))
    server.model = Rule(lambda messages: f"<{reword_question(messages[0]['content'].split(chr(10))[-1])}>")
    words = ("--with", server.url, "--model", "tiny", "--by", "back-translation", "--via", "German")
    run_data(data, "augment", "t.jsonl", "--out", "new.jsonl", *words)
    prompts = [body["messages"][0]["content"] for _, body in server.asked]
    assert sum("into German" in p for p in prompts) == sum("into English" in p for p in prompts) == 2
    assert manifest("new.jsonl")["reasons"] == {"added: a row by back-translation": 2}


def test_a_row_that_is_evaluated_is_not_reworded_and_a_rewording_that_asks_what_a_test_file_asks_left_out(
    augment_file, server
):
    jsonl(Path("t.jsonl"), rows(3))
    jsonl(Path("test.jsonl"), [*rows(1), {"text": reword_question(question(1)).upper(), "label": "money"}])
    run_data(augment_file, "t.jsonl", "--out", "new.jsonl", "--against", "test.jsonl")
    assert len(server.asked) == 2
    expected = {"added: a row by paraphrase": 1, "dropped: a rewording that is evaluated": 1}
    assert expected.items() <= manifest("new.jsonl")["reasons"].items()
    left_out = {"row": "t.jsonl:1", "change": "reported", "reason": "not used: it is evaluated"}
    assert left_out | {"of": "test.jsonl:1"} in manifest("new.jsonl")["rows"]


def augment_pairs(*pairs, label="x"):
    """Augment one row for each pair of a text and its rewording; returns the reasons of all changes."""
    content = rows_of(*({"text": text, "label": label} for text, _ in pairs))
    written = {i: [WrittenQuestion(new)] for i, (_, new) in enumerate(pairs)}
    outcomes = augment(content, ASKED, written, by="paraphrase")
    return [outcome.change.reason for outcome in outcomes if outcome.change]


@pytest.mark.parametrize(
    ("original", "new", "said"),
    [
        ("Where is my 1st parcel of 20 lamps?", "Who brought the 30 lamps I paid for", "other numbers"),
        ("where is it?", "Where  is IT?", "repeats its original"),
        ("Tell me what the shop sells", "", "is empty"),
        ("The lamp you sent me works", "What I bought does not shine", "a negation that its original lacks"),
        ("Meine Lampe geht nicht", "Was ich kaufte, leuchtet", "lacks the negation of its original"),
        ("Моя лампа не горит", "То, что я купил, светит", "lacks the negation of its original"),
        ("My lamp isn't lit", "What I bought never shines", "a row by paraphrase"),
        ("Tell me what the shop sells", "Which goods can I buy from you?", "a row by paraphrase"),
    ],
)
def test_a_rewording_is_written_only_where_it_can_have_the_answer_of_its_original(original, new, said):
    (reason,) = augment_pairs((original, new))
    assert said in reason


def test_a_rewording_needs_the_answer_that_stands_in_the_question_and_repeats_or_contradicts_no_row():
    original = "A train to Rome leaves at noon"
    for new, expected in (
        ("At noon one departs for the capital", "lacks the answer"),
        ("Noon is when one goes to Rome", "a row"),
    ):
        (reason,) = augment_pairs((original, new), label="Rome")
        assert expected in reason

    texts = ("Send the lamp back", "Why do you remain silent?")
    content = rows_of(*({"text": text, "label": label} for text, label in zip(texts, "ab", strict=True)))
    written = {
        0: [WrittenQuestion("Why do you remain SILENT?")],
        1: [WrittenQuestion("I await a letter")] * 2,
    }
    outcomes = augment(content, ASKED, written, by="x")
    assert [(o.change.kind, o.change.reason) for o in outcomes if o.change] == [
        ("dropped", "a rewording: another answer to the question"),
        ("added", "a row by x"),
        ("dropped", "a rewording: a duplicate"),
    ]


@pytest.mark.parametrize(("words", "said"), list_cases("refused_commands.txt", "augment"))
def test_what_cannot_be_asked_is_refused_before_anything_is_written(data, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    jsonl(Path("t.jsonl"), rows(2))
    arguments = ("augment", "t.jsonl", "--out", "new.jsonl", "--with", *words.split())
    assert said in read_refusal(data, *arguments)


def make_augmented_rows(n=20, every=1):
    """Return original rows; every `every`-th one is followed by an augmented row."""
    augmented = []
    for i in range(n):
        text = f"{i * i} q{i}w v{i}u"
        augmented.append({"text": text, "label": "ab"[i % 2], "n": i})
        if i % every == 0:
            rewording = {"text": f"z{i}k {i * i} y{i}m x{i}p", "source": "augmented", "augmented_from": text}
            augmented.append({**augmented[-1], **rewording})
    return augmented


def is_made(row):
    return row.get("source") == "augmented"


@pytest.mark.parametrize("seed", range(2))
def test_a_split_leaves_augmented_rows_in_training_alone_beside_their_originals(seed):
    split = split_rows(rows_of(*make_augmented_rows()), (0.6, 0.2, 0.2), seed=seed)
    parts = {name: [row.fields for row in part] for name, part in split.parts.items()}
    assert not any(is_made(row) for name in ("validation", "test") for row in parts[name])
    originals = {row["n"] for row in parts["train"] if not is_made(row)}
    assert {row["n"] for row in parts["train"] if is_made(row)} == originals
    assert len(originals) == 12
    dropped = [change.reason for change in split.changes]
    assert dropped == ["augmented from a row that is not trained on"] * 8


def letters_task(folder, **data):
    files = {name: str(folder / file) for name, file in data.items()}
    fields = {"prompt": "Sort this: {text}", "reference": "{label}"}
    task = {"name": "letters", "data": files, "fields": fields, "labels": ["a", "b"]}
    return Task.model_validate(task)


@pytest.mark.parametrize("parts", [{"all": "all.jsonl"}, {"train": "all.jsonl", "test": "test.jsonl"}])
def test_what_is_set_aside_for_a_comparison_holds_no_augmented_row_and_none_made_from_it(tmp_path, parts):
    jsonl(tmp_path / "all.jsonl", make_augmented_rows(30))
    jsonl(tmp_path / "test.jsonl", [{"text": f"never {i} seen u{i}", "label": "a"} for i in range(4)])
    items = load_task(letters_task(tmp_path, **parts), seed=0)
    numbers = {
        name: [re.findall(r"[qzk](\d+)", e.prompt)[0] for e in getattr(items, name) if "seen" not in e.prompt]
        for name in ("train", "validation", "test")
    }
    assert not any("k " in e.prompt for e in (*items.validation, *items.test))
    trained = set(numbers["train"])
    assert trained.isdisjoint(numbers["validation"])
    assert trained.isdisjoint(numbers["test"])
    assert len(numbers["train"]) == 2 * len(trained)
    (removed,) = [note for note in items.removed if "augmented" in note]
    assert f"{30 - len(trained)} augmented rows left out, made from rows that are evaluated" in removed


def test_an_augmented_row_in_a_test_file_is_refused_by_its_line(tmp_path):
    jsonl(tmp_path / "train.jsonl", [row for row in make_augmented_rows() if not is_made(row)])
    augmented_row = {**make_augmented_rows(1)[1], "text": "new 2"}
    jsonl(tmp_path / "test.jsonl", [{"text": "new 1", "label": "a"}, augmented_row])
    with pytest.raises(UserError, match=r"test\.jsonl:2: found an augmented row"):
        load_task(letters_task(tmp_path, train="train.jsonl", test="test.jsonl"), seed=0)


def test_a_candidate_of_the_experiment_rewords_its_training_rows(tiny, tmp_path, own_cache, command):
    def reword(messages):
        return reword_question(messages[0]["content"].split("\n\n", 1)[1] + " z q")

    with serve_model(Rule(reword)) as server:
        writer = f"  writer: {{method: endpoint, params: {{base_url: '{server.url}', model: tiny, protocol: chat}}}}\n"
        path = tiny_experiment.write(tmp_path, tiny, f"{writer}  more: {{method: lora, train: new.jsonl}}\n")
        out_file = tmp_path / "new.jsonl"
        source = tmp_path / "suites" / "letters" / "train.jsonl"
        words = ("--with", "writer", "-c", str(path), "--out", str(out_file))
        code, output, error = command("data", "augment", str(source), *words)
        assert code == 0, error
    assert "30 read" in output
    parameters = manifest(out_file)["parameters"]
    assert (parameters["with"], parameters["evaluated"]) == ("writer", 34)
    written = [parse_json(line) for line in out_file.read_text().splitlines()]
    assert sum(map(is_made, written)) == len(written) - 30 > 0
    assert all(row["reference"] in ("late", "money") for row in written)
    assert all(json.dumps(row) for row in written)


def test_sensitive_rows_are_sent_to_no_address_outside(tiny, tmp_path, own_cache, command):
    extra = "decide: {needs: [sensitive_data]}\n"
    more = "  bag: {method: classifier}\n  more: {method: lora, train: new.jsonl}\n"
    path = tiny_experiment.write(tmp_path, tiny, more, extra=extra)
    source, file = tmp_path / "suites" / "letters" / "train.jsonl", tmp_path / "new.jsonl"
    words = ("data", "augment", str(source), "-c", str(path), "--out", str(file), "--model", "big", "--with")
    code, _, error = command(*words, "https://big.example.invalid/v1")
    assert code == 2
    assert "a writer on an external server, big at https://big.example.invalid/v1" in error
    assert "decide.needs: [sensitive_data]" in error
    with serve_model(Rule(answer_rewording)) as server:
        code, _, error = command(*words, server.url, "--rows", "1", "--dry-run")
    assert code == 0, error


SHOP_LABELS = ("late", "money")
BY = ("--by", "new-questions")


def shop_rows(n=10):
    return [{"text": question(i), "label": SHOP_LABELS[i % 2], "n": i, "shop": "north"} for i in range(n)]


def last_shown(messages):
    """Return the index of the row that a request shows last."""
    return int(re.findall(r"\d+", messages[-2]["content"])[0])


def new_question(i):
    return f"{WORDS[-1 - i]} and {WORDS[i]} came broken, who pays for the {'abcdefghijkl'[i] * 4}?"


def write_new(messages):
    i = last_shown(messages)
    answer = SHOP_LABELS[i % 2].upper()
    return f"Sure!\n\n**Question:** {new_question(i)}\n**Answer:** {answer}\n\nQuestion: and more"


@pytest.fixture
def write_questions(data, server):
    """Return a function that writes new questions from a file with the server."""
    server.model = Rule(write_new)
    return lambda *words: data("augment", *words, *BY, "--with", server.url, "--model", "tiny")


def test_a_new_question_stands_with_its_answer_and_its_origin_behind_the_row_that_was_shown_last(
    write_questions, server
):
    jsonl(Path("t.jsonl"), [{**row, "id": f"r{i}"} for i, row in enumerate(shop_rows())])
    output = run_data(write_questions, "t.jsonl", "--out", "new.jsonl")
    original, new_row = read("new.jsonl")[:2]
    assert original == {**shop_rows()[0], "id": "r0"}
    origins = json.loads(new_row.pop("augmented_from"))
    # `n` differs between the shown rows, so it is left out; the answer has the label's spelling.
    expected = {"text": new_question(0), "label": "late", "shop": "north", "id": "r0-augmented-1"}
    assert new_row == {**expected, "source": "augmented"}
    assert origins[0] == question(0)
    assert len(set(origins)) == 4
    messages = next(m for _, body in server.asked if last_shown(m := body["messages"]) == 0)
    assert [m["role"] for m in messages] == ["user", "assistant"] * 4 + ["user"]
    assert all(any(f"Question: {text}\n" in m["content"] for m in messages) for text in origins)
    assert messages[0]["content"].startswith("Each answer is one of: late; money\n\nWrite a question")
    assert "10 added: a row by new-questions" in output
    assert manifest("new.jsonl")["parameters"]["who_answers"]["model"] == "tiny"


class Careless:
    """A writer of unusable questions, each for another reason."""

    def chat(self, messages, body):
        replies = {
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
        return ServerAnswer(replies.get(i) or write_new(messages), "length" if i == 8 else "stop")


def test_what_repeats_contradicts_is_evaluated_empty_or_of_an_unknown_label_is_left_out_with_its_reason(
    write_questions, server
):
    server.model = Careless()
    jsonl(Path("t.jsonl"), shop_rows())
    test_row = {"text": "When does the shop in the old town open on sundays", "label": "late"}
    jsonl(Path("test.jsonl"), [test_row])
    output = run_data(write_questions, "t.jsonl", "--out", "new.jsonl", "--against", "test.jsonl")
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
    assert "3 added, 7 dropped" in output or "7 dropped, 3 added" in output
    dropped_row = next(row for row in manifest("new.jsonl")["rows"] if "is evaluated" in row["reason"])
    assert dropped_row["of"] == "test.jsonl:1"


class Priced:
    """A good writer that reports 300 read tokens."""

    def chat(self, messages, body):
        return ServerAnswer(write_new(messages), n_prompt=300)


def test_an_interrupted_command_asks_the_rest_alone_and_writes_the_same_bytes(
    write_questions, server, tmp_path, monkeypatch
):
    server.model = Priced()
    jsonl(Path("t.jsonl"), shop_rows())
    words = ("--prices", "100,1000", "--max-new-tokens", "10", "--variants", "2")
    code, _, error = write_questions("t.jsonl", "--out", "one.jsonl", *words, "--max-cost", "0.2")
    assert (code, Path("one.jsonl").exists()) == (1, False)
    assert re.search(r"answers have cost 0\.\d+ USD, the next may cost 0\.\d+, and --max-cost is 0\.2", error)
    before = len(server.asked)
    assert 0 < before < 20
    run_data(write_questions, "t.jsonl", "--out", "one.jsonl", *words)
    assert len(server.asked) == 20
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "other-cache"))
    run_data(write_questions, "t.jsonl", "--out", "two.jsonl", *words)
    assert len(server.asked) == 40
    run_data(write_questions, "t.jsonl", "--out", "three.jsonl", *words)
    assert len(server.asked) == 40
    assert (
        Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes() == Path("three.jsonl").read_bytes()
    )
    assert manifest("one.jsonl")["cost_usd"] == manifest("three.jsonl")["cost_usd"] > 0


def test_a_dry_run_says_how_many_requests_it_takes_and_sends_none(write_questions, server):
    jsonl(Path("t.jsonl"), shop_rows())
    output = run_data(write_questions, "t.jsonl", "--dry-run", "--variants", "3", "--rows", "4")
    assert "4 of 10 rows to write new questions from" in output
    assert "12 requests" in output
    assert server.asked == []


def make_new_rows(n=20):
    """Return rows, each followed by one made from it and from the next row."""
    originals = [{"text": f"{i * i} q{i}w v{i}u", "label": "ab"[i % 2], "n": i} for i in range(n)]
    origins = [json.dumps([originals[i]["text"], originals[(i + 1) % n]["text"]]) for i in range(n)]
    texts = [f"z{i}k {i * i} y{i}m x{i}p" for i in range(n)]
    new = [{**originals[i], "text": texts[i], "label": "a", "augmented_from": origins[i]} for i in range(n)]
    return [row for pair in zip(originals, new, strict=True) for row in pair]


@pytest.mark.parametrize("seed", range(1))
def test_a_row_made_from_several_is_trained_on_only_where_all_of_them_are(seed):
    split = split_rows(rows_of(*make_new_rows()), (0.6, 0.2, 0.2), seed=seed)
    train = [row.fields for row in split.parts["train"]]
    ids = {row["n"] for row in train if "augmented_from" not in row}
    assert {row["n"] for row in train if "augmented_from" in row} == {i for i in ids if (i + 1) % 20 in ids}
    assert not any("augmented_from" in r.fields for name in ("validation", "test") for r in split.parts[name])
