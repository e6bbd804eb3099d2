"""A few made-up documents for tasks of lm-eval, laid out as on the hub.

Invariant: the files depend only on the arguments; every text is short enough for the tiny model.
"""

import json
from pathlib import Path

THINGS = ("lamp", "gate", "hen", "fox", "letter", "parcel", "depot", "telephone", "invoice", "address")
COLOURS = ("red", "brown", "green", "blue")


def write(folder: Path, n: int = 6) -> Path:
    easy = {"train": arc(2, 7), "validation": arc(2, 5), "test": arc(n)}
    write_data(folder / "allenai/ai2_arc", {"ARC-Easy": easy, "ARC-Challenge": {**easy, "test": arc(4, 10)}})
    write_data(
        folder / "allenai/winogrande", {"winogrande_xl": {"train": schemas(2), "validation": schemas(n)}}
    )
    pairs = {"causative": {"train": minimal_pairs(n)}, "wh_island": {"train": minimal_pairs(n, 3)}}
    write_data(folder / "nyu-mll/blimp", pairs)
    write_data(folder / "EleutherAI/lambada_openai", {"default": {"test": passages(n)}})
    write_data(folder / "EleutherAI/wikitext_document_level", {"wikitext-2-raw-v1": pages(n)})
    write_data(folder / "openai/gsm8k", {"main": {"train": sums(8, 20), "test": sums(n)}})
    subjects = {"anatomy": {"dev": questions(5, 4), "test": questions(n)}}
    write_data(folder / "cais/mmlu", subjects)
    return folder


def arc(n: int, start: int = 0) -> list[dict]:
    return [
        {
            "id": f"q{i}", "question": f"Which colour has the {THINGS[i % 10]} at the depot number {i}?",
            "choices": {"text": list(COLOURS), "label": ["A", "B", "C", "D"]}, "answerKey": "ABCD"[i % 4],
        }
        for i in range(start, start + n)
    ]  # fmt: skip


def schemas(n: int) -> list[dict]:
    return [
        {
            "sentence": f"The {THINGS[i]} hit the {THINGS[i + 1]} because _ was late.",
            "option1": f"the {THINGS[i]}", "option2": f"the {THINGS[i + 1]}", "answer": str(1 + i % 2),
        }
        for i in range(n)
    ]  # fmt: skip


def minimal_pairs(n: int, start: int = 0) -> list[dict]:
    return [
        {
            "sentence_good": f"A {THINGS[i]} walks past the gate.",
            "sentence_bad": f"A {THINGS[i]} walk past the gate.",
        }
        for i in range(start, start + n)
    ]


def passages(n: int) -> list[dict]:
    return [
        {"text": f"Send the {THINGS[i]} back to the depot, and do not lose the {THINGS[i]}"} for i in range(n)
    ]


def pages(n: int) -> dict[str, list[dict]]:
    """Make whole texts, the last one longer than the tiny model's context."""
    texts = [f"The {thing} is {COLOURS[i % 4]} at noon. " * (2 + 4 * i) for i, thing in enumerate(THINGS[:n])]
    rows = [{"page": text} for text in texts]
    return {"train": rows[:1], "validation": rows[:1], "test": rows}


def sums(n: int, start: int = 0) -> list[dict]:
    return [
        {
            "question": f"Ann has {i} lamps and buys {i + 1}. How many?",
            "answer": f"{i} + {i + 1}\n#### {2 * i + 1}",
        }
        for i in range(start, start + n)
    ]


def questions(n: int, start: int = 0) -> list[dict]:
    return [
        {
            "question": f"What is next to the {THINGS[i % 10]}?", "choices": list(THINGS[:4]),
            "answer": i % 4, "subject": "anatomy",
        }
        for i in range(start, start + n)
    ]  # fmt: skip


def write_data(folder: Path, configs: dict[str, dict[str, list[dict]]]) -> None:
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True, exist_ok=True)
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / config / f"{split}.jsonl").write_text(text)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
