"""Does the home-made general suite see what public benchmarks see? A study, run by hand and outside CI.

Eighteen LoRAs of the embedded model, over learning rates and lengths of training on the quickstart's
rows, answer the general suite and public benchmarks: ARC-easy, PIQA, WinoGrande, eight paradigms
of BLiMP, and those prompts of IFEval whose instructions the beginning of an answer can show. Every
delta is paired with the base on the same items. The rank correlation over the LoRAs says whether
the suite's macro orders them as the benchmarks do; a task's signal-to-noise says whether it orders
them at all.

`HARNESS_DATASETS_DIR=DIR PYTHONPATH=. python -m reports.studies.general_suite` needs local copies of the
benchmarks, laid out as on the hub, and about three quarters of an hour on two cores. A second call goes on
where the first one stopped. It writes `reports/general_suite_study.md` and `.json`.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import atanh, sqrt, tanh
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import harness
from harness import formatting, stats
from harness.cli.progress_bar import TerminalProgress
from harness.analysis.estimators import Comparison
from harness.report import ExperimentReport, to_plain
from reports.studies import ifeval_like
from reports.studies.recipe_search import ROOT, dump, read_suite

HERE = Path(__file__).parent
PARADIGMS = (
    "anaphor_gender_agreement",
    "determiner_noun_agreement_1",
    "irregular_past_participle_verbs",
    "passive_1",
    "principle_A_case_1",
    "regular_plural_subject_verb_agreement_1",
    "sentential_negation_npi_licensor_present",
    "wh_vs_that_no_gap",
)
CHANCES = {"arc_easy": 0.25, "piqa": 0.5, "winogrande": 0.5}
BENCHMARKS = ("arc_easy", "piqa", "winogrande", "blimp", "ifeval_like")
ENOUGH = 3.0  # signal-to-noise below which a task ranks by noise


class Size(NamedTuple):
    """How much is trained and asked: items of each task, learning rates, steps of four rows."""

    general: int = 150
    benchmark: int = 150
    paradigm: int = 25
    instructions: int = 60
    rates: tuple[float, ...] = (1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    steps: tuple[int, ...] = (10, 30, 60)


class Change(NamedTuple):
    """What one LoRA changed on a task or on a mean of tasks, with its standard error."""

    delta: float
    se: float


class Rank(NamedTuple):
    """Spearman's correlation with its 95 % interval, over n LoRAs."""

    rho: float
    low: float
    high: float
    n: int


class StudyResult(NamedTuple):
    """The study's numbers: what each LoRA changed by task, and what follows from that."""

    changes: dict[str, dict[str, Change]]
    ranks: dict[str, Rank]
    task_ranks: dict[str, Rank]
    signal_to_noise: dict[str, float | None]
    left_out: dict[str, str]


# The experiment


def prepare(folder: Path, size: Size, datasets: Path) -> Path:
    """Write the experiment into a folder: its suites, IFEval's rows and harness.yaml; returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ifeval_like.jsonl").write_text("".join(ifeval_rows(datasets)), "utf-8")
    (folder / "ifeval_like.py").write_text((HERE / "ifeval_like.py").read_text("utf-8"), "utf-8")
    experiment = {
        "name": "general-suite-study",
        "target": target(),
        "suites": [read_general(size), benchmarks(size)],
        "candidates": {"lora": {"method": "lora", "params": lora(size)}},
    }
    for written in (experiment["target"], *experiment["suites"]):
        dump(folder / f"{written['name']}.yaml", written)
    paths = {"target": "support.yaml", "suites": ["general.yaml", "benchmarks.yaml"]}
    dump(folder / "harness.yaml", {**experiment, **paths})
    return folder / "harness.yaml"


def lora(size: Size) -> dict[str, Any]:
    grid = {"learning_rate": list(size.rates), "max_steps": list(size.steps)}
    return {"r": 16, "per_device_train_batch_size": 4, **grid}


def target() -> dict[str, Any]:
    """Return the quickstart's target, of which only training matters here."""
    suite = read_suite("support")
    suite["tasks"][0]["data"]["limits"] = {"validation": 8, "test": 8}
    return suite


def read_general(size: Size) -> dict[str, Any]:
    suite = read_suite("general")
    for task in suite["tasks"]:
        task["limit"] = min(task["limit"], size.general)
    return suite


def benchmarks(size: Size) -> dict[str, Any]:
    tasks: list[dict[str, Any]] = [
        {"lm_eval": name, "limit": size.benchmark, "chance": chance} for name, chance in CHANCES.items()
    ]
    tasks += [{"lm_eval": f"blimp_{name}", "limit": size.paradigm, "chance": 0.5} for name in PARADIGMS]
    tasks.append(
        {
            "name": "ifeval_like",
            "data": {"test": "ifeval_like.jsonl"},
            "kind": "generate",
            "metrics": ["./ifeval_like.py"],
            "limit": size.instructions,
            "max_new_tokens": 80,
            "truncated_scores": True,
        }
    )
    return {"name": "benchmarks", "role": "capability", "tasks": tasks}


def ifeval_rows(datasets: Path) -> Iterator[str]:
    """Yield IFEval's prompts whose instructions can all be judged from the beginning of an answer."""
    for line in (datasets / "google" / "IFEval" / "default" / "train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        kinds = row["instruction_id_list"]
        if all(kind in ifeval_like.CHECKS for kind in kinds):
            asked = [{"kind": kind, **given} for kind, given in zip(kinds, row["kwargs"], strict=True)]
            yield json.dumps({"id": str(row["key"]), "prompt": row["prompt"], "constraints": asked}) + "\n"


# What it shows


def study(report: ExperimentReport) -> StudyResult:
    """Rank the LoRAs by the suite and by each benchmark, and weigh each task's spread against its noise."""
    general_tasks = [task["name"] for task in read_suite("general")["tasks"]]
    left_out = {name: why for name, why in report.not_admitted.items() if name in general_tasks}
    counted = [name for name in general_tasks if name not in left_out]
    changes = {
        facts.label: _changes(report.comparisons[facts.label], general_tasks, counted)
        for facts in report.facts
        if facts.state == "done"
    }
    columns = list(next(iter(changes.values())))
    return StudyResult(
        changes,
        {name: rank(changes, "macro", name) for name in (*BENCHMARKS, "benchmarks")},
        {name: rank(changes, name, "benchmarks") for name in general_tasks},
        {name: signal_to_noise([of[name] for of in changes.values()]) for name in columns},
        left_out,
    )


def _changes(
    compared: Sequence[Comparison], general_tasks: Sequence[str], counted: Sequence[str]
) -> dict[str, Change]:
    """Return a LoRA's changes by task, in the sense that below 0 is a loss, and their means."""
    own: dict[str, Change] = {}
    for c in compared:  # each task's primary metric stands first
        own.setdefault(c.task, Change(c.unit.sign * c.delta, c.se))
    out = {name: own[name] for name in (*general_tasks, *CHANCES, "ifeval_like")}
    out["blimp"] = mean([own[f"blimp_{name}"] for name in PARADIGMS])
    out["macro"] = mean([own[name] for name in counted])
    out["benchmarks"] = mean([out[name] for name in BENCHMARKS])
    return out


def mean(changes: Sequence[Change]) -> Change:
    """Average independent changes with equal weight."""
    return Change(fmean(c.delta for c in changes), sqrt(sum(c.se**2 for c in changes)) / len(changes))


def rank(changes: Mapping[str, Mapping[str, Change]], one: str, other: str) -> Rank:
    """Return Spearman's correlation over the LoRAs, with the interval of Bonett & Wright 2000.

    tanh(artanh ρ ± z √((1 + ρ²/2)/(n − 3))); of a correlation of 1 the interval is cut at .999.
    """
    from scipy.stats import spearmanr

    x, y = ([of[name].delta for of in changes.values()] for name in (one, other))
    n = len(x)
    if n < 4 or len(set(x)) == 1 or len(set(y)) == 1:
        return Rank(float("nan"), -1.0, 1.0, n)
    rho = float(spearmanr(x, y).statistic)
    middle = atanh(max(-0.999, min(0.999, rho)))
    half = stats.z_quantile(0.975) * sqrt((1 + rho**2 / 2) / (n - 3))
    return Rank(rho, tanh(middle - half), tanh(middle + half), n)


def signal_to_noise(changes: Sequence[Change]) -> float | None:
    """Set the spread over the LoRAs and the base against what other items of the task would move.

    The noise is the root mean square of the standard errors. Source: Heineman et al. 2025, arXiv:2508.13144.
    """
    noise, deltas = sqrt(fmean(c.se**2 for c in changes)), [0.0, *(c.delta for c in changes)]
    return (max(deltas) - min(deltas)) / noise if noise else None


# The report


def markdown(found: StudyResult, size: Size, header: Mapping[str, Any]) -> str:
    """Write the tables, with what they say in a sentence each."""
    whole, n = found.ranks["benchmarks"], len(found.changes)
    weak = [name for name in found.task_ranks if (found.signal_to_noise[name] or 0) < ENOUGH]
    asked = (
        f"{n} LoRAs of smollm2-135m (learning rates {_list(size.rates)}; {_list(size.steps)} steps of four rows "
        f"of the quickstart) on {size.general} items a task of the general suite, {size.benchmark} each of "
        f"ARC-easy, PIQA and WinoGrande, {size.paradigm} of each of {len(PARADIGMS)} paradigms of BLiMP, and "
        f"{size.instructions} prompts of IFEval. Deltas are paired with the base, in percentage points; bits per "
        "byte are turned, so that below 0 is a loss everywhere."
    )
    fall, fewer = (
        sum(_is_lost(of[name]) for of in found.changes.values()) for name in ("macro", "benchmarks")
    )
    said = (
        f"{fall} of the {n} LoRAs lose more than two standard errors on the suite's macro, {fewer} on the mean of the "
        f"benchmarks. Rank correlation of the macro with that mean: {_rank(whole)}. "
        f"Tasks with a signal-to-noise below {ENOUGH:g}: {', '.join(weak) or 'none'}."
    )
    head = "| LoRA | macro | mean of the benchmarks | " + " | ".join(BENCHMARKS) + " |"
    lines = ["# The general suite against public benchmarks", "", asked, "", said, ""]
    lines += [head, "|---" * (3 + len(BENCHMARKS)) + "|"]
    for name, of in sorted(found.changes.items(), key=lambda item: -item[1]["macro"].delta):
        cells = [formatting.points(of[key].delta) for key in ("macro", "benchmarks", *BENCHMARKS)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| benchmark | rank correlation with the macro | signal-to-noise |", "|---|---|---|"]
    lines += [
        f"| {name} | {_rank(found.ranks[name])} | {_format_number(found.signal_to_noise[name])} |"
        for name in (*BENCHMARKS, "benchmarks")
    ]
    lines += [
        "",
        "| task of the suite | deltas | rank correlation with the mean of the benchmarks | signal-to-noise | |",
        "|---|---|---|---|---|",
    ]
    lines += [_task_line(found, name) for name in found.task_ranks]
    lines += [f"| macro | {_range(found, 'macro')} | | {_format_number(found.signal_to_noise['macro'])} | |"]
    where = ", ".join(f"{key} {header[key]}" for key in ("device", "precision", "engine") if key in header)
    lines += ["", f"{where}. `python -m reports.studies.general_suite` makes this table again.", ""]
    return "\n".join(lines)


def _task_line(found: StudyResult, name: str) -> str:
    ratio = found.signal_to_noise[name]
    said = (
        "not in the macro" if name in found.left_out else "" if (ratio or 0) >= ENOUGH else "ranks by noise"
    )
    return f"| {name} | {_range(found, name)} | {_rank(found.task_ranks[name])} | {_format_number(ratio)} | {said} |"


def _is_lost(change: Change) -> bool:
    return change.delta < -2 * change.se


def _range(found: StudyResult, name: str) -> str:
    deltas = [of[name].delta for of in found.changes.values()]
    shown = formatting.plain if name.endswith("_text") else formatting.points
    return f"{shown(min(deltas))} to {shown(max(deltas))}"


def _rank(found: Rank) -> str:
    return f"{found.rho:.2f} [{found.low:.2f}, {found.high:.2f}]".replace("-", "−").replace(
        "nan", formatting.UNKNOWN
    )


def _format_number(x: float | None) -> str:
    return formatting.UNKNOWN if x is None else f"{x:.1f}"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def main() -> None:
    """Run what is missing of the study, and write its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "general_suite")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports")
    parser.add_argument("--tiny", action="store_true", help="four short LoRAs and few items: no evidence")
    given = parser.parse_args()
    datasets = os.environ.get("HARNESS_DATASETS_DIR")
    if not datasets:
        parser.error("HARNESS_DATASETS_DIR is not set: name the folder of the benchmarks' local copies")
    size = Size(6, 6, 3, 4, (1e-3, 2e-3), (1, 2)) if given.tiny else Size()
    path = prepare(given.folder, size, Path(datasets))
    report = harness.compare(path, progress=TerminalProgress())
    found = study(report)
    for facts in report.facts:
        if facts.state == "failed":
            sys.stderr.write(f"left out: {facts.label}, {facts.error}\n")
    given.reports.mkdir(parents=True, exist_ok=True)
    text = markdown(found, size, report.header)
    (given.reports / "general_suite_study.md").write_text(text, "utf-8")
    plain = to_plain({"size": size, "header": report.header, **found._asdict()})
    (given.reports / "general_suite_study.json").write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
