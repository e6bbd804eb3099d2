"""Do a judge's scores, corrected by a few of people's labels, agree with people on all answers? Run by hand.

XSTest's answers of five models (450 prompts each) are labelled by people, GPT-4 and a string match: was the
request complied with? A simulated test set draws its items from these with replacement, so people's labels of
all 450 are the truth; the first n items have a label, and the judge grades all. The study counts how often 95 %
intervals cover the truth, for rates and for differences of two models, corrected by n labels and uncorrected.
AlpacaEval's annotations serve to check win rates, standard errors and the preference for length against the
published figures.

`HARNESS_TEST_DATA=DIR PYTHONPATH=.:tests python -m reports.studies.judge_correction` takes two minutes on one
core and writes `reports/judge_correction.md` and `.json`.
"""

import gzip
import json
import os
import sys
from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from harness import formatting, stats
from harness.analysis.judge_correction import GradedArm, correct_difference, correct_score
from harness.stats import Array

ROOT = Path(__file__).parents[2]
JUDGES = {"GPT-4": "gpt4_label__gpt", "string match": "strmatch_label__str"}
SIZES = (50, 100, 200, 400)
PEOPLE = "final_label"
DRAWS = 2000
_BASIS = (
    "{draws:,} test sets of 450 items per cell: a coverage of 95 % has a standard error of {error:.2f} points, so the"
    " smallest of five models or ten pairs is expected to be one and a half to two of these below it."
)
_LENGTH = (
    "`weighted_alpaca_eval_gpt4_turbo`: it prefers the longer answers of {share_longer:.0%} of {n_models} models, in the median"
    " by {slope:.1%} with each doubling; for {share_alike:.0%} the published length-controlled win rate differs from the plain"
    " one in the direction that this predicts (rank correlation {rank:.2f})."
)
_WIDENED = (
    "With 50 labels fewer than ten may differ from their grades; the interval is then widened to Tango's, which covers"
    " the truth more often than its level."
)
ALPACA = ("weighted_alpaca_eval_gpt4_turbo", "alpaca_eval_gpt4")


class Answers(NamedTuple):
    """Compliance (0 or 1) of each of five models with each prompt, by people and by judge: (n,) by model."""

    people: dict[str, Array]
    judges: dict[str, dict[str, Array]]


class Coverage(NamedTuple):
    """Share of intervals that cover people's value: `least` and `most` over the models, or pairs of them."""

    judge: str
    what: str
    n_labels: int | None
    least: float
    mean: float
    most: float
    width: float


class WinRates(NamedTuple):
    """Largest differences (in points) between our win rates of an annotator and the published ones."""

    annotator: str
    n_models: int
    win_rate_off: float
    error_off: float


class LengthBias(NamedTuple):
    """Rise of an annotator's preference with length, by model, compared with the published correction.

    `share_longer` is the share of models that are preferred more for longer answers; `slope` is the median rise
    per doubling of the baseline's length. `share_alike` is the share of models whose win rate the published
    correction moves in the direction that the slope predicts, `rank` the rank correlation of both amounts.
    """

    n_models: int
    share_longer: float
    slope: float
    share_alike: float
    rank: float


def read_answers(folder: Path) -> Answers:
    """Read XSTest's labelled answers, with the items in one order for all models."""
    with gzip.open(folder / "rows" / "xstest_results" / "all.jsonl.gz", "rt") as lines:
        rows = {(row["model"], row["id"]): row for row in map(json.loads, lines)}
    models, items = sorted({m for m, _ in rows}), sorted({i for _, i in rows})

    def read_compliance(by: str) -> dict[str, Array]:
        labels = {m: [rows[m, i][by].startswith("1_full_compliance") for i in items] for m in models}
        return {m: np.array(complied, float) for m, complied in labels.items()}

    return Answers(read_compliance(PEOPLE), {name: read_compliance(by) for name, by in JUDGES.items()})


def pairs(answers: Answers) -> list[tuple[str, str]]:
    """List the ten pairs of two models."""
    models = sorted(answers.people)
    return [(a, b) for i, a in enumerate(models) for b in models[i + 1 :]]


def worlds(
    answers: Answers, judge: str, n_labels: int, draws: int, seed: int = 0
) -> Iterator[dict[str, GradedArm]]:
    """Draw test sets with replacement; the first `n_labels` items are labelled in all arms."""
    rng, n = np.random.default_rng([seed, n_labels]), len(next(iter(answers.people.values())))
    for _ in range(draws):
        pick = rng.integers(0, n, n)
        arms = {}
        for model, people in answers.people.items():
            labels = people[pick]
            labels[n_labels:] = np.nan
            arms[model] = GradedArm(answers.judges[judge][model][pick], labels, np.arange(n))
        yield arms


def coverage(
    answers: Answers, judge: str, n_labels: int, draws: int, compared: Sequence[tuple[str, str]]
) -> list[Coverage]:
    """Count how often intervals of corrected rates and differences cover people's value over all answers."""
    truth = {model: float(people.mean()) for model, people in answers.people.items()}
    names = [*truth, *compared]
    hits, widths = np.zeros(len(names)), np.zeros(len(names))
    for arms in worlds(answers, judge, n_labels, draws):
        scores = [correct_score(arms[m]) for m in truth]
        changes = [correct_difference(arms[a], arms[b]) for a, b in compared]
        true_values = [*truth.values(), *(truth[b] - truth[a] for a, b in compared)]
        for i, (estimate, value) in enumerate(zip([*scores, *changes], true_values, strict=True)):
            assert estimate is not None
            hits[i] += estimate.low <= value <= estimate.high
            widths[i] += estimate.high - estimate.low
    return _summaries(judge, n_labels, hits / draws, widths / draws, len(truth))


def count_uncorrected(
    answers: Answers, judge: str, draws: int, compared: Sequence[tuple[str, str]]
) -> list[Coverage]:
    """Count the same for the judge's own, uncorrected intervals over all items."""
    truth = {model: float(people.mean()) for model, people in answers.people.items()}
    grades, n = answers.judges[judge], len(next(iter(answers.people.values())))
    values = [*(grades[m] for m in truth), *(grades[b] - grades[a] for a, b in compared)]
    true_values = np.array([*truth.values(), *(truth[b] - truth[a] for a, b in compared)])
    pick = np.random.default_rng(1).integers(0, n, (draws, n))
    resampled = np.stack([value[pick] for value in values])  # (k, d, n)
    half = 1.96 * resampled.std(axis=-1, ddof=1) / sqrt(n)
    hits = (np.abs(resampled.mean(axis=-1) - true_values[:, None]) <= half).mean(axis=1)
    return _summaries(judge, None, hits, 2 * half.mean(axis=1), len(truth))


def win_rates(folder: Path, annotator: str) -> WinRates:
    """Compare our means and standard errors of AlpacaEval's annotations with the published ones, in points."""
    errors = []
    with gzip.open(folder / "rows" / "alpaca_eval_annotations" / f"{annotator}.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            if published := row["published"]:
                preferences = [p for p in row["preference"] if p is not None]
                has_ties = annotator == ALPACA[1]
                won = [0.5 if has_ties and p in (0, 1.5) else p - 1 for p in preferences]
                ours = stats.clustered_mean(won, range(len(won)))
                assert ours.se is not None
                win_rate, se = float(published["win_rate"]), float(published["standard_error"])
                errors.append((abs(100 * ours.mean - win_rate), abs(100 * ours.se - se)))
    return WinRates(annotator, len(errors), *map(float, np.max(errors, axis=0)))


def length_bias(folder: Path) -> LengthBias:
    """Compare our length bias with AlpacaEval's own correction of the win rates for length."""
    slopes, ours, published = [], [], []
    with gzip.open(folder / "rows" / "alpaca_eval_annotations" / f"{ALPACA[0]}.jsonl.gz", "rt") as lines:
        for row in map(json.loads, lines):
            figures = row["published"]
            columns = zip(row["preference"], row["len_model"], row["len_baseline"], strict=True)
            complete = np.array([values for values in columns if None not in values], float)
            complete = complete[(complete[:, 1:] > 0).all(axis=1)]
            if not figures or np.ptp(complete[:, 1] / complete[:, 2]) == 0:
                continue
            doublings = np.log2(complete[:, 1] / complete[:, 2])
            slopes.append(stats.clustered_slope(doublings, complete[:, 0] - 1, range(len(complete))).mean)
            ours.append(slopes[-1] * doublings.mean())
            published.append(float(figures["win_rate"]) - float(figures["length_controlled_winrate"]))
    same_sign = np.sign(ours) == np.sign(published)
    rank = float(np.corrcoef(rankdata(ours), rankdata(published))[0, 1])
    share = float((np.array(slopes) > 0).mean())
    return LengthBias(len(slopes), share, float(np.median(slopes)), float(same_sign.mean()), rank)


def _summaries(judge: str, n_labels: int | None, hits: Array, widths: Array, n_models: int) -> list[Coverage]:
    parts = {"rate": slice(0, n_models), "difference": slice(n_models, None)}
    return [
        Coverage(judge, name, n_labels, *map(float, (hits[part].min(), hits[part].mean(), hits[part].max())),
                 float(widths[part].mean()))
        for name, part in parts.items()
    ]  # fmt: skip


def markdown(
    coverages: Sequence[Coverage], won: Sequence[WinRates], bias: LengthBias, answers: Answers, draws: int
) -> str:
    """Write the page."""
    percent = formatting.percent
    error = sqrt(0.95 * 0.05 / draws)
    rows = [
        f"| {c.judge} | {c.what} | {'none: uncorrected' if c.n_labels is None else c.n_labels} | "
        f"{percent(c.mean)} | {percent(c.least)} to {percent(c.most)} | {percent(c.width)} |"
        for c in coverages
    ]
    labels = {"people": answers.people, **answers.judges}
    rates = [
        f"| {name} | {' | '.join(percent(float(v.mean())) for v in by_model.values())} |"
        for name, by_model in labels.items()
    ]
    differences = [
        f"- `{w.annotator}`: the win rates of {w.n_models} models are within {max(w.win_rate_off, 1e-4):.4f} points of the"
        f" published ones, their standard errors within {max(w.error_off, 1e-4):.4f}."
        for w in won
    ]
    head = "| judge | figure | labels | 95 % intervals that cover people's value, mean % | range | width, points |"
    return "\n".join(
        [
            "# Scores of a judge, corrected by a few of people's labels",
            "",
            f"{__doc__.partition(chr(10))[2].split('`HARNESS')[0].strip()}",
            "",
            _BASIS.format(draws=draws, error=100 * error),
            "",
            "Requests complied with, in % of all 450 answers:",
            "",
            f"| by | {' | '.join(answers.people)} |",
            f"|---{'|---' * len(answers.people)}|",
            *rates,
            "",
            head,
            "|---|---|---|---|---|---|",
            *rows,
            "",
            _WIDENED,
            "",
            "## AlpacaEval's annotations",
            "",
            "They contain no labels by people, so nothing is corrected.",
            "",
            *differences,
            f"- {_LENGTH.format(**bias._asdict())}",
            "",
        ]
    )


def main() -> None:
    """Run the study and write its page."""
    folder = Path(os.environ["HARNESS_TEST_DATA"])
    answers = read_answers(folder)
    compared, coverages = pairs(answers), list[Coverage]()
    for judge in JUDGES:
        coverages += count_uncorrected(answers, judge, 2000, compared)
        for n in SIZES:
            coverages += coverage(answers, judge, n, DRAWS, compared)
            sys.stderr.write(f"{coverages[-2]}\n{coverages[-1]}\n")
    won, bias = [win_rates(folder, annotator) for annotator in ALPACA], length_bias(folder)
    content = {
        "coverage": [c._asdict() for c in coverages],
        "win_rates": [w._asdict() for w in won],
        "length_bias": bias._asdict(),
    }
    file = ROOT / "reports" / "judge_correction.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(coverages, won, bias, answers, DRAWS))


if __name__ == "__main__":
    main()
