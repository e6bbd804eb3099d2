"""The quickstart's data equals suites/make_support.py's output, splits do not leak, the contest is fair."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

SUITES = Path(__file__).parents[2] / "suites"
FILES = ("train", "validation", "test", "pairs", "harmless", "documents")


ROWS: dict[str, list[dict[str, Any]]] = {
    name: [
        json.loads(line) for line in (SUITES / "support" / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]
    for name in FILES
}

SPLITS = {name: ROWS[name] for name in ("train", "validation", "test")}


def _question(row: dict[str, Any]) -> str:
    return str(row["prompt"]).rsplit("\n\n", 1)[-1]


def _slice(split: str, name: str) -> list[dict[str, Any]]:
    return [row for row in SPLITS[split] if row["slice"] == name]


def _facts(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["documents"][0], row["reference"]) for row in rows]


def _states(text: str, value: str) -> bool:
    return re.search(rf"(?<![\w.:]){re.escape(value)}(?!\w)", text) is not None


def test_generating_again_gives_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SUITES / "make_support.py", tmp_path], check=True)
    for name in FILES:
        file = f"{name}.jsonl"
        assert (tmp_path / file).read_bytes() == (SUITES / "support" / file).read_bytes(), file


def test_no_family_prompt_or_id_is_in_two_splits():
    ids = [row["id"] for rows in ROWS.values() for row in rows]
    assert len(ids) == len(set(ids))
    clusters = [{row["cluster"] for row in rows} for rows in SPLITS.values()]
    assert sum(map(len, clusters)) == len(set.union(*clusters))
    prompts = {name: {_question(row).lower() for row in ROWS[name]} for name in FILES[:4]}
    assert not prompts["test"] & (prompts["train"] | prompts["validation"] | prompts["pairs"])
    assert not prompts["validation"] & (prompts["train"] | prompts["pairs"])
    for split, rows in SPLITS.items():
        prompts = Counter(row["prompt"] for row in rows)
        assert max(prompts.values()) == 1, (split, prompts.most_common(1))


def test_half_of_the_facts_asked_in_held_out_splits_are_new_and_appear_nowhere_in_training():
    trained_facts = set(_facts(_slice("train", "knowledge")))
    for split in ("validation", "test"):
        facts = _facts(_slice(split, "knowledge"))
        assert sum(fact not in trained_facts for fact in facts) * 2 == len(facts)
    trained = "\n".join(row["prompt"] + "\n" + row["reference"] for row in SPLITS["train"])
    trained += "\n".join(" ".join((row["prompt"], row["chosen"], row["rejected"])) for row in ROWS["pairs"])
    texts = {document["id"]: document["text"] for document in ROWS["documents"]}
    for split in ("validation", "test"):
        for document, value in set(_facts(_slice(split, "knowledge"))) - trained_facts:
            assert not _states(trained, value), value
            assert texts[document] not in trained


def test_every_answer_stands_in_its_document_and_in_no_other() -> None:
    texts = {document["id"]: document["text"] for document in ROWS["documents"]}
    for rows in SPLITS.values():
        for document, value in _facts([row for row in rows if row["slice"] == "knowledge"]):
            assert [name for name, text in texts.items() if _states(text, value)] == [document], value


def test_only_training_prompts_carry_pasted_passages_in_the_layout_of_retrieval():
    pasted = {name for name in FILES[:4] for row in ROWS[name] if row["prompt"].startswith("Context:\n")}
    assert pasted == {"train"}
    lines = {f"{document['title']}: {document['text']}" for document in ROWS["documents"]}
    for row in SPLITS["train"]:
        if row["prompt"].startswith("Context:\n"):
            context, _ = row["prompt"].removeprefix("Context:\n").split("\n\n")
            assert set(context.split("\n")) <= lines


def test_every_behaviour_reference_is_one_of_eight_balanced_choices():
    for split in SPLITS:
        for row in _slice(split, "behaviour"):
            assert len(row["choices"]) == 8
            assert row["reference"] in row["choices"]
    for split in SPLITS:
        counts = Counter(row["reference"] for row in _slice(split, "behaviour"))
        assert len(counts) == 8
        assert max(counts.values()) - min(counts.values()) <= 2


def test_a_bag_of_words_does_not_decide_the_behaviour_slice() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = _slice("train", "behaviour"), _slice("test", "behaviour")
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10.0, max_iter=1000))
    model.fit([_question(row) for row in train], [row["reference"] for row in train])
    predicted = model.predict([row["prompt"] for row in test])
    hits = sum(a == row["reference"] for a, row in zip(predicted, test, strict=True))
    assert hits / len(test) < 0.45
