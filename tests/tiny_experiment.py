"""A whole experiment on the tiny model: twelve letters to sort, three capability tasks, seconds to run.

Invariant: the files depend only on the arguments.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import config, store
from harness.experiment import Scope, compare, prepare_session
from harness.progress import SilentProgress
from harness.records import Run

LATE = ("parcel", "depot", "letter", "lamp box", "courier", "delivery", "package", "post")
MONEY = ("invoice", "sum", "refund", "charge", "price", "bill", "receipt", "payment")

TARGET = """\
name: letters
tasks:
  - name: letters
    data: {train: letters/train.jsonl, validation: letters/validation.jsonl, test: letters/test.jsonl}
    metrics: [exact_match, macro_f1]
    labels: [late, money]
    max_new_tokens: 4
"""

GENERAL = """\
name: general
role: capability
tasks:
  - {name: sums, kind: choice, data: {test: general/sums.jsonl}, metrics: [accuracy], chat_template: false}
  - {name: facts, data: {test: general/facts.jsonl}, metrics: [contains], max_new_tokens: 4}
  - {name: prose, kind: bits_per_byte, data: {test: general/prose.jsonl}, metrics: [bits_per_byte]}
"""

DESK = """\
name: desk
base_model: {model}
precision: fp32
device: cpu
target:
"""

CANDIDATES = """\
  prompt: {method: base}
  shots: {prompting: {few_shot: {select: knn, shots: 2}}}
  ranked: {answer: rank}
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
  hybrid: {weights_of: lora, prompting: {few_shot: {select: fixed, shots: 2}}}
"""
TUNED = """\
  prompt: {method: base}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""


def write(
    folder: Path, model: Path, candidates: str = CANDIDATES, *, extra: str = "", pairs: Sequence[dict] = ()
) -> Path:
    """Write harness.yaml, two suites and their rows; return the path of harness.yaml."""
    suites = folder / "suites"
    for name in ("letters", "general"):
        (suites / name).mkdir(parents=True, exist_ok=True)
    data_keys = "{pairs: letters/pairs.jsonl, train:" if pairs else "{train:"
    (suites / "letters.yaml").write_text(TARGET.replace("{train:", data_keys))
    if pairs:
        rows(suites / "letters" / "pairs.jsonl", pairs)
    (suites / "general.yaml").write_text(GENERAL)
    for split, words in (("train", slice(0, 5)), ("validation", slice(5, 6)), ("test", slice(6, 8))):
        rows(suites / "letters" / f"{split}.jsonl", letters(words))
    rows(
        suites / "general" / "sums.jsonl",
        [
            {
                "id": f"sum-{n}", "prompt": f"One and {n} make", "reference": str(n + 1),
                "choices": [str(n + 1), str(n + 2), str(n + 3)],
            }
            for n in range(6)
        ],
    )  # fmt: skip
    rows(suites / "general" / "facts.jsonl", facts())
    lines = ("A brown hen walks past a gate.", "Send the lamp back.", "It is noon.", "The desk answers.")
    rows(
        suites / "general" / "prose.jsonl",
        [{"id": f"text-{n}", "text": text} for n, text in enumerate(lines)],
    )
    path = folder / "harness.yaml"
    path.write_text(
        f"name: tiny\nbase_model: {model}\nprecision: fp32\ndevice: cpu\ntarget: suites/letters.yaml\n"
        f"suites: [suites/general.yaml]\ncandidates:\n{candidates}{extra}"
    )
    return path


def rows(path: Path, content: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))


def write_splits(folder: Path, sizes: tuple[int, int, int], row: Callable[[str, int], dict]) -> None:
    """Write rows of train, validation and test, made from the split's name and the row's number."""
    for name, n in zip(("train", "validation", "test"), sizes, strict=True):
        rows(folder / f"{name}.jsonl", [{"id": f"{name}-{i}"} | row(name, i) for i in range(n)])


def write_facts(folder: Path, n: int) -> None:
    """Write n questions with a short answer, so that their task has several blocks."""
    questions = [{"id": f"n{i}", "prompt": f"What follows {i}?", "reference": str(i + 1)} for i in range(n)]
    rows(folder / "suites" / "general" / "facts.jsonl", questions)


def parcel_pairs(n: int) -> list[dict]:
    return [
        {"id": f"pair-{i}", "prompt": f"Where is parcel {i}?", "chosen": "late", "rejected": "money"}
        for i in range(n)
    ]


def letters(words: slice) -> list[dict]:
    """Make three letters per word, labelled by the word's topic."""
    patterns = ("Where is the {} of Monday?", "Please look at my {} again.", "Nobody tells me about the {}.")
    labelled = [(word, label) for label, vocab in (("late", LATE), ("money", MONEY)) for word in vocab[words]]
    return [
        {"id": f"{word}-{i}", "prompt": pattern.format(word), "reference": label, "cluster": word}
        for word, label in labelled
        for i, pattern in enumerate(patterns)
    ]


def facts() -> list[dict]:
    return [
        {"id": f"fact-{n}", "prompt": f"What follows the number {n}?", "reference": str(n + 1)}
        for n in range(6)
    ]


def run(path: Path, *overrides: str, candidates: tuple[str, ...] = (), **options):
    return compare(path, overrides, candidates, **options)


def session(path: Path, *overrides: str, **scope):
    """Prepare the experiment's session, before anything is computed."""
    return prepare_session(config.load(path, overrides), Scope(**scope), SilentProgress())


def fact_of(report, name: str):
    """Return the report's facts on a candidate."""
    return next(f for f in report.facts if f.name == name)


def read_all_rows(folder: Path) -> dict[str, list[dict]]:
    """Read every row of every complete set below runs/, without its measured time."""
    at = store.Store(folder / "runs")
    return {
        file.parent.name: [
            {name: getattr(row, name) for name in row.__slots__ if name != "compute_s"}
            for row in store.read_rows(at, file.parent.name)
        ]
        for file in at.folder.glob("rows/*/rows.parquet")
    }


def runs_of(path: Path) -> dict[str, Run]:
    """Read the stored runs of an experiment, the last of each candidate."""
    return {run.candidate: run for run in store.list_runs(store.Store(path.parent / "runs"))}


def rewrite_champion(file, **changes):
    """Change the champion of the last promotion in its history; the champion's file follows it."""
    history = file.with_suffix(".history.jsonl")
    *earlier, last = history.read_text().splitlines(keepends=True)
    entry = json.loads(last)
    history.write_text(
        "".join(earlier) + json.dumps(entry | {"champion": entry["champion"] | changes}) + "\n"
    )
    file.unlink()  # the next reader rewrites it
