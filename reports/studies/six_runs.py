"""Does the quickstart give the same decision with other seeds and precisions? Run by hand.

Seeds 0, 1 and 2, each in bf16 and in fp32. `python -m reports.studies.six_runs` needs an hour on two cores and writes
`reports/six_runs.md` and `.json`; a second call resumes the first one. `--precision bf16` and `--seed 0` select runs.
"""

import argparse
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import harness
from harness import formatting
from harness.cli.progress_bar import TerminalProgress
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.verdict import WORDS

ROOT = Path(__file__).parents[2]
SEEDS, PRECISIONS = (0, 1, 2), ("bf16", "fp32")
JUDGED = ("lora-careless", "lora", "hybrid")


def main() -> None:
    """Run the selected runs, and write the page of all finished ones."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", choices=PRECISIONS)
    parser.add_argument("--seed", type=int, choices=SEEDS)
    options = parser.parse_args()
    file = ROOT / "reports" / "six_runs.json"
    precisions = [options.precision] if options.precision else PRECISIONS
    for precision, seed in product(precisions, SEEDS if options.seed is None else [options.seed]):
        figures = run(precision, seed)
        runs = json.loads(file.read_text("utf-8")) if file.exists() else {}
        runs[f"{precision}, seed {seed}"] = figures
        ordered = {key: runs[key] for key in sorted(runs)}
        file.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")
        file.with_suffix(".md").write_text(page(ordered), "utf-8")


def run(precision: str, seed: int) -> dict[str, Any]:
    """Return the quickstart's figures with a seed in a precision; runs of one precision share a store."""
    folder = ROOT / "runs" / "studies" / "six_runs" / precision
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "harness.yaml").write_bytes((ROOT / "harness.yaml").read_bytes())
    if not (folder / "suites").exists():
        (folder / "suites").symlink_to(ROOT / "suites")
    settings = [f"seeds=[{seed}]", f"precision={precision}"]
    report = harness.compare(folder / "harness.yaml", settings, progress=TerminalProgress())
    header = {key: report.header[key] for key in ("device", "precision", "time") if key in report.header}
    facts = {facts.name: _keep(facts) for facts in report.facts if facts.name in JUDGED}
    return {"header": header, "decision": report.decision.sentence, "facts": facts}


def _keep(facts: CandidateFacts) -> dict[str, Any]:
    """Return a candidate's score, gain and capability change with intervals, and its verdict."""
    target, gain, verdict = facts.target, facts.vs_untrained, facts.verdict
    macro = verdict and verdict.macro
    return {
        "score": target and target.score,
        "gain": gain and [gain.delta, gain.low, gain.high],
        "macro": macro and [macro.score, macro.low, macro.high],
        "outcome": verdict and verdict.outcome,
    }


def page(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the page: the decision of each run, and each fine-tune's gain, forgetting and verdict."""
    lines = [
        "# Does the quickstart give the same decision with other seeds and precisions?",
        "",
        (
            "Its three fine-tunes with three seeds, which also sample the general items, in two precisions:"
            " target score, gain over the best untrained candidate, change of the capability suite, verdict."
        ),
        "",
        "| run | " + " | ".join(JUDGED) + " | decision |",
        "|---" * (2 + len(JUDGED)) + "|",
    ]
    for name, figures in runs.items():
        cells = [_cell(figures["facts"].get(candidate)) for candidate in JUDGED]
        lines.append(f"| {name} | {' | '.join(cells)} | {figures['decision'].split(':')[0]} |")
    if missing := [f"{p}, seed {n}" for p, n in product(PRECISIONS, SEEDS) if f"{p}, seed {n}" not in runs]:
        lines += ["", f"Not run yet: {'; '.join(missing)}."]
    machines = dict.fromkeys(", ".join(map(str, figures["header"].values())) for figures in runs.values())
    return "\n".join([*lines, "", *(f"- {machine}" for machine in machines), ""])


def _cell(facts: Mapping[str, Any] | None) -> str:
    if not facts or facts["score"] is None:
        return formatting.UNKNOWN
    changes = [formatting.points(*facts[key]) for key in ("gain", "macro") if facts[key]]
    return "; ".join(
        [f"{100 * facts['score']:.1f}", *changes, WORDS.get(facts["outcome"], formatting.UNKNOWN)]
    )


if __name__ == "__main__":
    main()
