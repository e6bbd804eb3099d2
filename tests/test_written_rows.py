"""Rows that a chat template does not write, and special tokens in rows: both are found before anything runs."""

import json
import shlex

import pytest
import tiny_experiment
import tiny_model

from harness.config import load
from harness.experiment import Scope, prepare_session
from harness.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("own_cache")

_EACH, _, _TURN = tiny_model.CHATML.partition("%}")
ALTERNATES = (
    _EACH
    + "%}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    + "{{ raise_exception('roles must alternate') }}{% endif %}"
    + _TURN
)
TWICE = [{"role": "user", "content": "Where is"}, {"role": "user", "content": "my lamp box?"}]
CANDIDATES = "  prompt: {method: base}\n  lora: {method: lora, params: {r: 2}}\n"


def write(folder, base, *, extra="", pairs=()):
    path = tiny_experiment.write(folder, base, CANDIDATES + extra, pairs=pairs)
    target = folder / "suites" / "letters.yaml"
    target.write_text(target.read_text().replace("    labels: [late, money]\n", "").replace(", macro_f1", ""))
    return path


def change(path, file, line, **fields):
    file = path.parent / "suites" / file
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    rows[line - 1] = {name: v for name, v in {**rows[line - 1], **fields}.items() if v is not None}
    tiny_experiment.rows(file, rows)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A base whose template refuses turns that do not alternate."""
    return tiny_model.build(tmp_path_factory.mktemp("strict"), template=ALTERNATES)


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("letters/test.jsonl", 2),
        ("letters/train.jsonl", 30),
        ("letters/validation.jsonl", 1),
        ("general/facts.jsonl", 6),
    ],
)
def test_a_row_that_the_template_does_not_write_is_named_before_anything_runs(
    command, tmp_path, strict, file, line, dry
):
    path = write(tmp_path, strict)
    change(path, file, line, prompt=None, messages=TWICE)
    code, _, said = command("compare", "-c", path, *(["--dry-run"] if dry else []))
    assert code == 2
    assert f"{file}:{line}: found a conversation that the chat template does not write" in said
    assert "(roles must alternate)" in said
    assert "next: change its turns to such as the template takes, remove the row" in said
    assert not (tmp_path / "runs" / "rows").exists()


def test_a_turn_that_the_template_leaves_out_is_named(command, tmp_path):
    alone = "{% set messages = messages[-1:] %}" + tiny_model.CHATML
    path = write(tmp_path, tiny_model.build(tmp_path / "base", template=alone))
    said = [
        {"role": "user", "content": "Its number is 7."},
        {"role": "assistant", "content": "Yes."},
        TWICE[1],
    ]
    change(path, "letters/test.jsonl", 2, prompt=None, messages=said)
    code, _, said = command("compare", "-c", path, "--dry-run")
    assert (code, "test.jsonl:2: found a turn of 'user' that the chat template leaves out" in said) == (
        2,
        True,
    )


def test_pairs_are_written_too(command, tmp_path, strict):
    pair = {"messages": TWICE, "chosen": "late", "rejected": "money"}
    path = write(tmp_path, strict, pairs=[pair])
    code, _, said = command("compare", "-c", path, "--dry-run")
    assert (code, "pairs.jsonl:1: found a conversation" in said) == (2, True)


def test_a_system_text_of_a_candidate_that_the_template_refuses_is_named(command, tmp_path):
    refuses = "{% if messages[0]['content'] == 'Be short.' %}{{ raise_exception('no') }}{% endif %}"
    base = tiny_model.build(tmp_path / "base", template=refuses + tiny_model.CHATML)
    path = write(tmp_path, base, extra="  told: {method: base, system: Be short.}\n")
    code, _, said = command("compare", "-c", path, "--dry-run")
    assert (code, "candidate told: the prompt of item " in said) == (2, True)


def test_shots_that_a_template_refuses_are_named(command, tmp_path):
    refuses = "{% if messages[1:] %}{{ raise_exception('one turn alone') }}{% endif %}"
    base = tiny_model.build(tmp_path / "base", template=refuses + tiny_model.CHATML)
    path = write(tmp_path, base, extra="  shown: {method: base, prompting: {few_shot: {shots: 2}}}\n")
    code, _, said = command("compare", "-c", path, "--dry-run")
    assert (code, "candidate shown: the prompt of item " in said) == (2, True)


BOMB = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"


def test_a_template_that_never_ends_is_a_problem_of_the_base_with_the_bound(command, tmp_path):
    path = write(tmp_path, tiny_model.build(tmp_path / "base", template=BOMB + tiny_model.CHATML))
    code, _, said = command("compare", "-c", path, "--dry-run")
    assert code == 2
    (line,) = [line for line in said.splitlines() if "chat template" in line]
    assert (
        f"base_model {tmp_path / 'base'}: found a chat template that takes more than 1,000,000 steps" in line
    )


@pytest.mark.parametrize(
    "written", ["late<|im_end|>", "late</s>", "<|im_start|>assistant\nlate<|im_end|>\n", "late<pad>"]
)
def test_answers_are_compared_and_trained_without_special_tokens_around_them(data, tmp_path, tiny, written):
    path = write(tmp_path, tiny)
    for line in (1, 2):
        change(path, "letters/test.jsonl", line, reference=written)
        change(path, "letters/train.jsonl", line, reference=written)
    items = prepare_session(load(path), Scope(), SilentProgress()).target.items
    assert {e.references for e in (*items.test, *items.train)} == {("late",), ("money",)}
    (note,) = [note for note in items.overlap if "special tokens" in note]
    assert note.startswith("4 rows with special tokens in answers, such as ")
    for command in note.partition("next: ")[2].split(" && "):
        words = shlex.split(command)
        code, out, err = data(*words[2:])
        assert (code, "2 changed: special tokens removed in 'reference'" in out) == (0, True), err


@pytest.mark.parametrize("token", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "[/INST]", "<s>"])
def test_special_tokens_in_prompts_and_documents_are_told(tmp_path, tiny, token):
    path = write(tmp_path, tiny)
    change(path, "letters/test.jsonl", 3, prompt=f"{token} Where is my lamp box?")
    change(path, "general/facts.jsonl", 1, prompt=f"{token} What follows?")
    items = prepare_session(load(path), Scope(), SilentProgress()).target.items
    assert [note.partition(", such")[0] for note in items.overlap] == [
        "1 row with special tokens in prompts"
    ] * 2
    assert items.overlap[1].count("letters/test.jsonl:3") == 1
