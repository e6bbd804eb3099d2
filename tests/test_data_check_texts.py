"""The check of texts: encoding, lengths, formats, personal data, and rows that cannot be used."""

import json
import shlex
from itertools import pairwise

import pytest
from checked_rows import WORDS, alarms, fill_layout, lines, make_clean_rows, recognise_rows, texts, write
from test_formats import ROWS as LAYOUT_ROWS
from typer.testing import CliRunner

from harness.cli import app
from harness.data import check
from harness.data.check import Tokenizer
from harness.data.check._table import read_table
from harness.data.check.texts import personal_data
from harness.data.edit.clean import clean_text
from harness.experiment.check_rows import RowCheck, examine_rows


def test_damaged_encoding_is_found_and_mended_in_the_example(find):
    rows = make_clean_rows()
    rows[5]["text"] += " café über"
    rows[9]["text"] += " " + "café über".encode().decode("cp1252")
    rows[11]["text"] += " caf\ufffd"
    damaged, lost = alarms(find(rows, "encoding_damage"))
    assert (lines(damaged), lines(lost)) == ([10], [12])
    assert "café über" in damaged.example
    assert lost.command.endswith(" --drop-lost")


def test_control_characters_are_found_as_clean_mends_them(find, tmp_path):
    rows = make_clean_rows(40)
    rows[3]["text"] += "\x00 tum"
    rows[5]["text"] += "\r\ntum"
    rows[7]["text"] += "\ttum\ntum"
    (found,) = alarms(find(rows, "encoding_damage"))
    assert (found.severity, lines(found)) == ("warning", [4, 6])
    assert "\\x00" in found.example
    done = CliRunner().invoke(app, shlex.split(found.command)[1:])
    assert "2 changed" in done.stdout
    mended = examine_rows(RowCheck([str(tmp_path / "rows.clean.jsonl")], only=["encoding_damage"])).findings
    assert alarms(mended) == []


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("Ã é uma letra", "Ã é uma letra"),
        ("O sinal é um Ã", "O sinal é um Ã"),
        ("Ã la carte", "à la carte"),
        ("cafÃ© Ã la carte", "café à la carte"),
        ("SÃ£o Paulo é", "São Paulo é"),
    ],
)
def test_an_a_with_a_tilde_that_names_the_letter_is_no_damage(find, text, mended):
    rows = make_clean_rows(40)
    rows[3]["text"] = text
    assert [lines(f) for f in alarms(find(rows, "encoding_damage"))] == ([] if mended == text else [[4]])
    assert clean_text(text)[0] == mended


def test_rows_that_cannot_be_used_are_counted_by_why(find):
    rows = make_clean_rows()
    rows[3]["text"] = " "
    del rows[8]["label"]
    (found,) = alarms(find(rows, "missing_values"))
    assert (found.severity, lines(found)) == ("error", [4, 9])
    assert "an empty prompt (1)" in found.title


def test_a_column_of_texts_and_numbers_is_found(find):
    rows = [{**row, "label": i % 2 if i < 40 else str(i % 2)} for i, row in enumerate(make_clean_rows())]
    (found,) = alarms(find(rows, "missing_values"))
    assert (found.count, lines(found)) == (40, list(range(1, 41)))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to ann.lee@example.org please", ["e-mail addresses"]),
        ("card 4111 1111 1111 1111 was charged", ["credit card numbers"]),
        ("card 4111 1111 1111 1112 was charged", []),
        ("pay to GB82 WEST 1234 5698 7654 32 today", ["IBANs"]),
        ("IBAN DE89370400440532013000 OK thanks", ["IBANs"]),
        ("DE89 3704 0044 0532 0130 00 FR14 2004 1010 0505 0001 3M02 606 AND MORE", ["IBANs", "IBANs"]),
        ("pay to GB83 WEST 1234 5698 7654 32 today", []),
        ("call +44 20 7946 0018 at noon", ["phone numbers"]),
        ("in 2019 there were 12,345,678 of 1,000 kg at 3.14159", []),
    ],
)
def test_personal_data_are_known_by_their_form_and_check_digits(text, kinds):
    assert [kind for kind, _ in personal_data(text)] == kinds


def test_rows_beyond_the_context_are_all_found(tmp_path):
    rows = make_clean_rows()
    rows[6]["text"] = "word " * 500
    asked = RowCheck([write(tmp_path / "rows.jsonl", rows)])
    table = read_table(asked.files, recognise_rows(asked))
    words = Tokenizer("words", 100, lambda texts: [len(text.split()) for text in texts])
    found = check.check_rows(table, check.CheckContext(tokenizer=words), ["amount"])
    assert lines(found[0]) == [7]
    assert "longest 501" in next(f.title for f in found if "tokens a row" in f.title)


def test_tokens_are_counted_by_the_tokenizer_of_the_base(find, tmp_path):
    import tiny_model

    rows = make_clean_rows()
    rows[6]["text"] = "parcel " * 300
    found = find(rows, "amount", base=str(tiny_model.build(tmp_path / "tiny")))
    assert lines(found[0]) == [7]
    assert "longer than the 256 tokens" in found[0].title


def test_a_format_that_goes_with_a_source_is_found_and_one_of_all_is_not(find):
    rows = [{**row, "origin": "abc"[i % 3]} for i, row in enumerate(texts(300, 1))]
    assert alarms(find(rows, "answer_formats", source="origin")) == []
    for row in rows[::3]:
        row["reference"] = f"Answer: {row['reference']}"
    found = alarms(find(rows, "answer_formats", source="origin"))
    assert {"'a'" in f.title for f in found} == {True}
    assert all(set(lines(f)) <= set(range(1, 301, 3)) and len(f.rows) == f.count > 0 for f in found)
    assert any("begin with a mark such as 'Answer:' in 100 %" in f.title for f in found)


@pytest.mark.parametrize("layout", sorted(LAYOUT_ROWS.keys() - {"transcript"}))
def test_answers_with_white_space_around_them_are_found_and_cut_in_every_layout(find, tmp_path, layout):
    asked = [(f"{a} {b}?", f"It is {b}") for a, b in pairwise(WORDS[:40])]
    assert alarms(find([fill_layout(LAYOUT_ROWS[layout], *of) for of in asked], "answer_formats")) == []
    asked[7:10:2] = [("What now?", f"{WORDS[7]} \n"), ("What then?", f" {WORDS[8]}")]
    found = alarms(find([fill_layout(LAYOUT_ROWS[layout], *of) for of in asked], "answer_formats"))
    assert [(f.title, lines(f)) for f in found] == [
        ("answers with white space behind them", [8]),
        ("answers with white space in front of them", [10]),
    ]
    behind, in_front = (shlex.split(f.command, comments=True)[1:] for f in found)
    assert in_front == behind
    assert behind[-1] == "--leading-spaces"
    done = CliRunner().invoke(app, in_front)
    assert done.exit_code == 0, done.stderr
    assert ", 2 changed" in done.stdout
    mended = RowCheck([str(tmp_path / "rows.clean.jsonl")], only=["answer_formats"])
    assert alarms(examine_rows(mended).findings) == []


def test_white_space_in_front_of_answers_is_cut_only_when_asked(find, tmp_path):
    rows = [
        {"prompt": f"Code of {a}?", "reference": f"    return {b}", "source": "a"}
        for a, b in pairwise(WORDS[:30])
    ]
    write(tmp_path / "code.jsonl", rows)
    command = ["data", "clean", str(tmp_path / "code.jsonl"), "--out"]
    for options in ([], ["--leading-spaces"]):
        out = tmp_path / f"out{len(options)}.jsonl"
        assert CliRunner().invoke(app, [*command, str(out), *options]).exit_code == 0
        cut = [{**row, "reference": row["reference"].lstrip()} for row in rows] if options else rows
        assert [json.loads(line) for line in out.read_text().splitlines()] == cut


def test_white_space_behind_a_transcript_is_found_and_cut_and_what_is_in_front_of_it_is_its_form(
    find, tmp_path
):
    rows = [fill_layout(LAYOUT_ROWS["transcript"], f"{a}?", f"It is {b}") for a, b in pairwise(WORDS[:30])]
    assert alarms(find(rows, "answer_formats")) == []
    rows[3]["chosen"] += " \n"
    (found,) = alarms(find(rows, "answer_formats"))
    assert lines(found) == [4]
    assert ", 1 changed" in CliRunner().invoke(app, shlex.split(found.command)[1:]).stdout


def test_every_reply_of_a_tree_and_every_rated_completion_is_looked_at(find, tmp_path):
    def reply(text, *below, role="assistant", **more):
        return {"text": text, "role": role, "replies": list(below), **more}

    trees = [
        {
            "message_tree_id": f"t{i}",
            "prompt": reply(
                f"What is {word}?",
                reply(f"{word} it is", reply("And then?  ", reply(f"Then {word}s"), role="prompter"), rank=0),
                reply(f"no {word}", rank=1),
                role="prompter",
            ),
        }
        for i, word in enumerate(WORDS[:30])
    ]
    trees[5]["prompt"]["replies"][1]["text"] += " "
    trees[7]["prompt"]["replies"][0]["replies"][0]["replies"][0]["text"] += "\n"
    (found,) = alarms(find(trees, "answer_formats"))
    assert lines(found) == [6, 8]
    rated = [
        {
            "instruction": f"What is {word}?",
            "completions": [
                {"response": f"{word}{end}", "overall_score": n} for n, end in enumerate(("!", "", "?"))
            ],
        }
        for word in WORDS[:30]
    ]
    rated[2]["completions"][0]["response"] += " "
    (found,) = alarms(find(rated, "answer_formats"))
    assert lines(found) == [3]
    assert ", 1 changed" in CliRunner().invoke(app, shlex.split(found.command)[1:]).stdout


def test_a_pair_with_white_space_behind_both_answers_is_one_row_and_its_example_is_masked(find):
    rows = [{"prompt": f"{a} {b}?", "chosen": a, "rejected": b} for a, b in pairwise(WORDS[:30])]
    secret = f"{'ab ' * 40}write to ann.lee@example.org at once, before the {WORDS[3]} of {WORDS[4]} "
    rows[4] = {**rows[4], "chosen": secret, "rejected": "No "}
    (found,) = alarms(find(rows, "answer_formats"))
    assert lines(found) == [5]
    assert "•" in found.example
    assert "example" not in found.example


@pytest.mark.e2e
def test_no_finding_shows_personal_data_wherever_an_example_is_cut(tmp_path, find):
    rows = make_clean_rows()
    secrets = ("jane.roe@example.com", "+49 6151 123456")
    for i in range(20, 65, 5):
        text = f"{'ab ' * (i // 3)}{secrets[i % 2]} was the café"
        both = {"text": text, "label": "refund"}
        rows += [both, both, {**both, "label": "invoice"}, {**both, "text": f"{text} ж {'tum ' * i}"}]
        rows += [{**both, "text": text.replace("é", damage)} for damage in ("Ã©", "\ufffd")]
    shown = json.dumps([[f.title, f.example] for f in find(rows, test=[write(tmp_path / "t.jsonl", rows)])])
    for part in ("roe", "example", "6151", "123"):
        assert part not in shown


@pytest.mark.parametrize("thumbs", [(True, False), (1, 0)])
def test_thumbs_are_a_layout_and_no_fault(find, thumbs):
    rows = [
        {"prompt": row["prompt"], "completion": row["reference"], "label": thumbs[i % 2]}
        for i, row in enumerate(texts(40, 1))
    ]
    found = find(rows)
    assert alarms(found) == []
    assert [f.count for f in found if f.title == "answers with a thumb down"] == [20]


def test_calls_of_tools_are_read_as_openai_writes_them(find):
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 40, "b": 2}'}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{row['text']}?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "42"},
                {"role": "assistant", "content": f"It is {row['text']}"},
            ],
            "tools": [{"type": "function", "function": {"name": "add"}}],
        }
        for row in make_clean_rows(40)
    ]
    assert alarms(find(rows)) == []
