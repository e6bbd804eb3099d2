"""The whole cycle on a tiny model: corrections of a served champion's answers train its successor."""

import json
import shlex

import pytest
from openai import OpenAI
from test_serving import serving

from harness import store
from harness.lifecycle import release
from harness.store import Store

FORCED = ("--force", "--reason", "a test", "--by", "Ann")
AGAIN = (
    "  again: {method: lora, train: corrections.jsonl,"
    " params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}\n"
)
ASKED = {"crate": "late", "van": "late", "tracking": "late", "box": "late", "ticket": "money", "fee": "money"}


def ask_the_champion(path) -> list[dict]:
    """Serve the champion and ask it through the openai client; returns feedback rows on its answers."""
    with serving(path, "letters", "--to", "merged") as (_, lines):
        assert lines[0].endswith("; 12 of 12 answers are the stored ones"), lines
        client = OpenAI(base_url=lines[0].split()[1].rstrip(","), api_key="none")
        sent = json.loads(shlex.split(lines[-1])[-1])
        rows = []
        for i, (word, right) in enumerate(ASKED.items()):
            request = f"Please tell me about the {word} of Tuesday."
            messages = [{"role": "user", "content": request}]
            answer = client.chat.completions.create(model=sent["model"], messages=messages, max_tokens=4)
            feedback = {"request": request, "answer": answer.choices[0].message.content or "nothing"}
            feedback |= {"correction": right, "thumb": "down", "model": "lora", "sender": f"user-{i}"}
            rows.append(feedback | {"time": f"2026-11-0{i + 1}T10:00:00Z"})
    return rows


@pytest.mark.weekly
def test_corrections_of_a_served_champion_train_its_successor_and_a_rollback_brings_it_back(copy, harness):
    folder, runs = copy.parent, Store(copy.parent / "runs")
    harness("export", "lora", "--to", "merged", "-c", copy, check=0)
    assert harness("gate", "--candidate", "lora", "-c", copy).returncode in (0, 3, 4)
    harness("promote", "lora", *FORCED, "-c", copy, check=0)
    (promoted,) = store.read_history(folder, "letters").entries
    assert "model.safetensors" in promoted.exports["merged-fp32"]

    log, rows = folder / "log.jsonl", folder / "corrections.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in ask_the_champion(copy)))
    harness("feedback", "add", log, "-c", copy, check=0)
    harness("feedback", "rows", "--out", rows, "-c", copy, check=0)
    corrected = [json.loads(line) for line in rows.read_text().splitlines()]
    assert sorted(row["reference"] for row in corrected) == sorted(ASKED.values())

    copy.write_text(copy.read_text() + AGAIN)
    process = harness("compare", "--candidates", "again", "-c", copy, check=0)
    assert "not read" not in process.stderr + process.stdout, "columns of a file that the harness wrote"
    harness("promote", "again", *FORCED, "-c", copy, check=0)
    second = store.read_champion(folder, "letters")
    assert second.candidate == "again"
    assert "corrections.jsonl" in store.get_run(runs, second.run_id).provenance["training_rows"]

    harness("champions", "rollback", "--reason", "users complain", "-c", copy, check=0)
    assert store.read_champion(folder, "letters") == promoted.champion
    judged = release.gate(copy, "again")[0]
    assert judged.baseline == f"the champion lora ({promoted.champion.run_id})"
    entries = store.read_history(folder, "letters").entries
    events = [("promotion", 1), ("promotion", 2), ("rollback", 1)]
    assert [(entry.event, entry.promoted) for entry in entries] == events
