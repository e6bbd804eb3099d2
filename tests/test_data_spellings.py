"""Labels in several spellings: found by the check, and written alike by the command that it names, in every layout."""

import json
import shlex
from pathlib import Path

import pytest
from checked_rows import LABELS, alarms, make_clean_rows, write
from typer.testing import CliRunner

from harness.cli import app
from harness.data.edit.decisions import RowDecision, keep_decision
from harness.errors import UserError
from harness.records import checksum

SPELT = {
    "chat": lambda asks, label: {
        "messages": [
            {"role": "user", "content": f"Hello, {asks}"},
            {"role": "assistant", "content": "Refund"},
            {"role": "user", "content": asks},
            {"role": "assistant", "content": label},
        ]
    },
    "chat of parts": lambda asks, label: {
        "messages": [
            {"role": "user", "content": asks},
            {"role": "assistant", "content": [{"type": "text", "text": label}]},
        ]
    },
    "ShareGPT": lambda asks, label: {
        "conversations": [{"from": "human", "value": asks}, {"from": "gpt", "value": label}]
    },
    "turns and completion": lambda asks, label: {
        "prompt": [{"role": "user", "content": asks}],
        "completion": [{"role": "assistant", "content": label}],
    },
    "answers": lambda asks, label: {"question": asks, "answers": [label]},
    "SQuAD": lambda asks, label: {"question": asks, "answers": {"text": [label], "answer_start": [0]}},
    "references": lambda asks, label: {"prompt": asks, "references": [label]},
    "Alpaca": lambda asks, label: {"instruction": asks, "input": "", "output": label},
    "Dolly": lambda asks, label: {"instruction": asks, "context": "", "response": label},
    "FLAN": lambda asks, label: {"inputs": asks, "targets": label},
    "several answers": lambda asks, label: {"question": asks, "answers": [label, f"the {asks}"]},
    "several references": lambda asks, label: {"prompt": asks, "references": [label, f"the {asks}"]},
    "two columns": lambda asks, label: {"prompt": asks, "reference": label, "references": [label]},
    "pair": lambda asks, label: {"prompt": asks, "chosen": label, "rejected": "none"},
    "pair of turns": lambda asks, label: {
        "chosen": [{"role": "user", "content": asks}, {"role": "assistant", "content": label}],
        "rejected": [{"role": "user", "content": asks}, {"role": "assistant", "content": "none"}],
    },
    "OpenAI preference": lambda asks, label: {
        "input": {"messages": [{"role": "user", "content": asks}]},
        "preferred_output": [{"role": "assistant", "content": label}],
        "non_preferred_output": [{"role": "assistant", "content": "none"}],
    },
    "rated": lambda asks, label: {
        "instruction": asks,
        "completions": [
            {"response": label, "overall_score": 5},
            {"response": "none", "overall_score": 1},
        ],
    },
    "tree": lambda asks, label: {
        "message_tree_id": asks,
        "prompt": {
            "text": asks,
            "role": "prompter",
            "replies": [{"text": label, "role": "assistant", "replies": []}],
        },
    },
}


@pytest.mark.parametrize("layout", SPELT)
def test_labels_in_several_spellings_are_mended_in_every_layout(find, tmp_path, layout):
    rows = make_clean_rows(40)
    for i in (0, 4, 8):
        rows[i]["label"] = ("Refund", "REFUND", "refund.")[i // 4]
    found = find([SPELT[layout](*row.values()) for row in rows], "answer_formats")
    (found,) = (f for f in alarms(found) if "spellings" in f.title)
    assert (found.count, found.command.endswith("rows.clean.jsonl --spellings")) == (3, True)
    done = CliRunner().invoke(app, shlex.split(found.command)[1:])
    assert done.exit_code == 0, done.stderr
    mended = [json.loads(line) for line in (tmp_path / "rows.clean.jsonl").read_text().splitlines()]
    assert mended == [SPELT[layout](row["text"], LABELS[i % 4]) for i, row in enumerate(rows)]


def test_a_decision_relabels_no_rated_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digest = checksum(Path(write(tmp_path / "r.jsonl", [SPELT["rated"]("a", "Refund")])))
    keep_decision("r.jsonl", 1, RowDecision("relabel", "refund"), digest, "completions")
    words = "data clean r.jsonl --decisions r.jsonl.decisions.json --out n.jsonl"
    with pytest.raises(
        UserError, match="relabel, where a row has several rated answers; expected drop or keep"
    ):
        CliRunner().invoke(app, words.split(), catch_exceptions=False)
