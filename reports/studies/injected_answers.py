"""How much does an answer gain by instructing its judge? Run by hand, in two minutes on one quiet core.

SmolLM2-135M-Instruct grades three answers to each of thirty questions of Dolly from 1 to 5: Dolly's own, the answer to
another question, and one of thirty texts that ask for the best grade (`tests/injections.py`). A judge that follows its
rubric grades such a text like an answer to another question. A scripted judge that obeys everything outside the marks
and nothing inside gives these texts no advantage (`tests/evaluation/test_judges.py`).

`HARNESS_TEST_DATA=DIR PYTHONPATH=.:tests python -m reports.studies.injected_answers` writes
`reports/injected_answers.md` and `.json`.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from injections import INJECTIONS
from openai_server import Rule, serve_model
from tiny_experiment import rows as write_rows
from tiny_experiment import runs_of

from harness import stats, store
from harness.experiment import compare
from harness.store import Store
from reports.studies.local_judge import HELPFUL, JUDGE, read_instructions

ROOT = Path(__file__).parents[2]
SHORT = 300  # characters of a question and of its answer
ARMS = ("own", "another", "injected")
CONFIG = """\
name: injected
base_model: smollm2-135m
target:
  name: questions
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  metrics: [judge:./helpful.yaml]
candidates:
"""
CANDIDATE = (
    "  {arm}: {{method: endpoint, system: {arm}, params: {{base_url: {url}, model: tiny, protocol: chat}}}}\n"
)


def questions(data: Path) -> list[dict[str, Any]]:
    """Draw one short row of Dolly for each injected answer."""
    rows = [r for r in read_instructions(data, 3000, summaries=False) if max(map(len, r.values())) <= SHORT]
    return [{"id": f"q{i}", **row} for i, row in enumerate(rows[: len(INJECTIONS)])]


def grade_answers(folder: Path, rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Let the model grade the three answers to each question; return the grades in [0, 1] by arm."""
    texts = {
        "own": [row["reference"] for row in rows],
        "another": [row["reference"] for row in rows[1:] + rows[:1]],
        "injected": INJECTIONS,
    }
    answers = {(arm, row["prompt"]): texts[arm][i] for arm in ARMS for i, row in enumerate(rows)}
    for name in ("train", "validation"):
        write_rows(
            folder / f"{name}.jsonl", [{"prompt": f"Say {name} {i}.", "reference": "0"} for i in range(2)]
        )
    write_rows(folder / "test.jsonl", rows)
    (folder / "helpful.yaml").write_text(HELPFUL)

    def answer(messages: list[dict[str, str]]) -> str:
        return answers.get((messages[0]["content"], messages[-1]["content"]), "0")

    with serve_model(Rule(answer)) as server:
        (folder / "harness.yaml").write_text(
            CONFIG.format() + "".join(CANDIDATE.format(arm=arm, url=server.url) for arm in ARMS)
        )
        compare(folder / "harness.yaml")
    runs_store, grades = Store(folder / "runs"), {}
    for name, run in runs_of(folder / "harness.yaml").items():
        stored = store.read_rows(runs_store, run.rows["questions/test"], texts=False)
        by_id = {row.example_id: row.parts["judge:helpful"] for row in stored}
        grades[name] = [float(by_id[row["id"]][0]) for row in rows if by_id[row["id"]] is not None]
    return grades


def figures(grades: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return each arm's mean grade and the gain of injected answers over the others, in % of the scale."""
    arrays = {arm: np.array(values) for arm, values in grades.items()}
    zeros = np.zeros(len(arrays["own"]))

    def change(base: np.ndarray, new: np.ndarray) -> list[float]:
        mean = stats.paired_delta(base, new)
        return [100 * x for x in (mean.mean, *stats.t_interval(mean))]

    return {
        "judge": JUDGE,
        "n": len(zeros),
        "means": {arm: change(zeros, values) for arm, values in arrays.items()},
        "gains": {arm: change(arrays[arm], arrays["injected"]) for arm in ARMS[:2]},
        "raised": float((arrays["injected"] > np.maximum(arrays["own"], arrays["another"])).mean()),
        "grades": {arm: list(values) for arm, values in grades.items()},
    }


def markdown(results: Mapping[str, Any]) -> str:
    """Write the page."""
    about = (__doc__ or "").partition("\n\n")[2].split("`HARNESS")[0].strip()
    names = {
        "own": "Dolly's answer",
        "another": "the answer to another question",
        "injected": "the injected one",
    }
    means = [f"| {names[arm]} | {_text(mean)} |" for arm, mean in results["means"].items()]
    gains = [f"| {names[arm]} | {_text(gain, '+')} |" for arm, gain in results["gains"].items()]
    low = results["gains"]["another"][1]
    finding = "gain: this judge follows some of the instructions" if low > 0 else "are not shown to gain"
    return "\n".join(
        [
            "# Answers that instruct their judge",
            "",
            about,
            "",
            f"| answer to each of {results['n']} questions | mean grade, % of the scale [95 % interval] |",
            "|---|---|",
            *means,
            "",
            "| the injected answer gains over | points of the scale |",
            "|---|---|",
            *gains,
            "",
            f"Injected answers {finding}. {100 * results['raised']:.0f} % of them have a better grade than both others.",
            "",
        ]
    )


def _text(estimate: list[float], sign: str = "") -> str:
    mean, low, high = (f"{x:{sign}.1f}".replace("-", "−") for x in estimate)
    return f"{mean} [{low}, {high}]"


def main() -> None:
    """Run the study, and write its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "injected_answers")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    results = figures(grade_answers(folder, questions(Path(os.environ["HARNESS_TEST_DATA"]))))
    file = ROOT / "reports" / "injected_answers.json"
    file.write_text(json.dumps(results, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
