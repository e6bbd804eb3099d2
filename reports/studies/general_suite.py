"""Does our general suite agree with public benchmarks? A study, run by hand and outside CI.

Eighteen LoRAs of the embedded model, with several learning rates and numbers of steps on the quickstart's
rows, answer the general suite and public benchmarks: ARC-easy, PIQA, WinoGrande, eight paradigms of BLiMP,
and the prompts of IFEval whose instructions can be checked on the beginning of an answer. Every delta is
paired with the base on the same items. The rank correlation over the LoRAs says whether the suite's macro
orders them as the benchmarks do; a task's signal-to-noise says whether it orders them at all.

`HARNESS_DATASETS_DIR=DIR PYTHONPATH=. python -m reports.studies.general_suite` needs local copies of the
benchmarks, laid out as on the hub, and about three quarters of an hour on two cores. A second call resumes
the first one. It writes `reports/general_suite_study.md` and `.json`.
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
    """Size of the study: items per task, learning rates, steps of four rows."""

    general: int = 150
    benchmark: int = 150
    paradigm: int = 25
    instructions: int = 60
    rates: tuple[float, ...] = (1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
    steps: tuple[int, ...] = (10, 30, 60)


class Change(NamedTuple):
    """Change by one LoRA on a task or a mean of tasks, with its standard error."""

    delta: float
    se: float


class Rank(NamedTuple):
    """Spearman's correlation with its 95 % interval, over n LoRAs."""

    rho: float
    low: float
    high: float
    n: int


class StudyResult(NamedTuple):
    """The study's figures: changes by LoRA and task, and the statistics computed from them."""

    changes: dict[str, dict[str, Change]]
    ranks: dict[str, Rank]
    task_ranks: dict[str, Rank]
    signal_to_noise: dict[str, float | None]
    left_out: dict[str, str]


# The experiment


def prepare(folder: Path, size: Size, datasets: Path) -> Path:
    """Write the suites, IFEval's rows and harness.yaml into a folder; return the path of harness.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ifeval_like.jsonl").write_text("".join(ifeval_rows(datasets)), "utf-8")
    (folder / "ifeval_like.py").write_text((HERE / "ifeval_like.py").read_text("utf-8"), "utf-8")
    experiment = {
        "name": "general-suite-study",
        "target": target(),
        "suites": [read_general(size), benchmarks(size)],
        "candidates": {"lora": {"method": "lora", "params": lora(size)}},
    }
    for suite in (experiment["target"], *experiment["suites"]):
        dump(folder / f"{suite['name']}.yaml", suite)
    paths = {"target": "support.yaml", "suites": ["general.yaml", "benchmarks.yaml"]}
    dump(folder / "harness.yaml", {**experiment, **paths})
    return folder / "harness.yaml"


def lora(size: Size) -> dict[str, Any]:
    grid = {"learning_rate": list(size.rates), "max_steps": list(size.steps)}
    return {"r": 16, "per_device_train_batch_size": 4, **grid}


def target() -> dict[str, Any]:
    """Return the quickstart's target, which matters here only for training."""
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
    """Yield IFEval's prompts whose instructions can all be checked on the beginning of an answer."""
    for line in (datasets / "google" / "IFEval" / "default" / "train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        kinds = row["instruction_id_list"]
        if all(kind in ifeval_like.CHECKS for kind in kinds):
            constraints = [{"kind": kind, **extra} for kind, extra in zip(kinds, row["kwargs"], strict=True)]
            item = {"id": str(row["key"]), "prompt": row["prompt"], "constraints": constraints}
            yield json.dumps(item) + "\n"


# The statistics


def study(report: ExperimentReport) -> StudyResult:
    """Rank the LoRAs by the suite and by each benchmark, and compute each task's signal-to-noise."""
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
        {name: signal_to_noise([by_task[name] for by_task in changes.values()]) for name in columns},
        left_out,
    )


def _changes(
    compared: Sequence[Comparison], general_tasks: Sequence[str], counted: Sequence[str]
) -> dict[str, Change]:
    """Return a LoRA's changes by task (below 0 is a loss) and their means."""
    by_task: dict[str, Change] = {}
    for c in compared:  # each task's primary metric comes first
        by_task.setdefault(c.task, Change(c.unit.sign * c.delta, c.se))
    changes = {name: by_task[name] for name in (*general_tasks, *CHANCES, "ifeval_like")}
    changes["blimp"] = mean([by_task[f"blimp_{name}"] for name in PARADIGMS])
    changes["macro"] = mean([by_task[name] for name in counted])
    changes["benchmarks"] = mean([changes[name] for name in BENCHMARKS])
    return changes


def mean(changes: Sequence[Change]) -> Change:
    """Average independent changes with equal weight."""
    return Change(fmean(c.delta for c in changes), sqrt(sum(c.se**2 for c in changes)) / len(changes))


def rank(changes: Mapping[str, Mapping[str, Change]], first: str, second: str) -> Rank:
    """Return Spearman's correlation over the LoRAs, with the interval of Bonett & Wright 2000.

    tanh(artanh ρ ± z √((1 + ρ²/2)/(n − 3))); correlations are clipped to ±.999.
    """
    from scipy.stats import spearmanr

    x, y = ([by_task[name].delta for by_task in changes.values()] for name in (first, second))
    n = len(x)
    if n < 4 or len(set(x)) == 1 or len(set(y)) == 1:
        return Rank(float("nan"), -1.0, 1.0, n)
    rho = float(spearmanr(x, y).statistic)
    middle = atanh(max(-0.999, min(0.999, rho)))
    half = stats.z_quantile(0.975) * sqrt((1 + rho**2 / 2) / (n - 3))
    return Rank(rho, tanh(middle - half), tanh(middle + half), n)


def signal_to_noise(changes: Sequence[Change]) -> float | None:
    """Return the range over the LoRAs and the base divided by the noise of the task's items.

    The noise is the root mean square of the standard errors. Source: Heineman et al. 2025, arXiv:2508.13144.
    """
    noise, deltas = sqrt(fmean(c.se**2 for c in changes)), [0.0, *(c.delta for c in changes)]
    return (max(deltas) - min(deltas)) / noise if noise else None


# The report


def markdown(result: StudyResult, size: Size, header: Mapping[str, Any]) -> str:
    """Write the page: the design, the findings and the tables."""
    correlation, n = result.ranks["benchmarks"], len(result.changes)
    weak = [name for name in result.task_ranks if (result.signal_to_noise[name] or 0) < ENOUGH]
    design = (
        f"{n} LoRAs of smollm2-135m (learning rates {_list(size.rates)}; {_list(size.steps)} steps of four rows "
        f"of the quickstart) on {size.general} items per task of the general suite, {size.benchmark} each of "
        f"ARC-easy, PIQA and WinoGrande, {size.paradigm} of each of {len(PARADIGMS)} paradigms of BLiMP, and "
        f"{size.instructions} prompts of IFEval. Deltas are paired with the base, in percentage points; the sign of "
        "bits per byte is reversed, so that below 0 is always a loss."
    )
    n_macro, n_benchmarks = (
        sum(_is_lost(by_task[name]) for by_task in result.changes.values()) for name in ("macro", "benchmarks")
    )
    findings = (
        f"{n_macro} of the {n} LoRAs lose more than two standard errors on the suite's macro, {n_benchmarks} on the mean "
        f"of the benchmarks. Rank correlation of the macro with that mean: {_rank(correlation)}. "
        f"Tasks with a signal-to-noise below {ENOUGH:g}: {', '.join(weak) or 'none'}."
    )
    head = "| LoRA | macro | mean of the benchmarks | " + " | ".join(BENCHMARKS) + " |"
    lines = ["# The general suite against public benchmarks", "", design, "", findings, ""]
    lines += [head, "|---" * (3 + len(BENCHMARKS)) + "|"]
    for name, by_task in sorted(result.changes.items(), key=lambda item: -item[1]["macro"].delta):
        cells = [formatting.points(by_task[key].delta) for key in ("macro", "benchmarks", *BENCHMARKS)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| benchmark | rank correlation with the macro | signal-to-noise |", "|---|---|---|"]
    lines += [
        f"| {name} | {_rank(result.ranks[name])} | {_format_number(result.signal_to_noise[name])} |"
        for name in (*BENCHMARKS, "benchmarks")
    ]
    lines += [
        "",
        "| task of the suite | deltas | rank correlation with the mean of the benchmarks | signal-to-noise | |",
        "|---|---|---|---|---|",
    ]
    lines += [_task_line(result, name) for name in result.task_ranks]
    lines += [f"| macro | {_range(result, 'macro')} | | {_format_number(result.signal_to_noise['macro'])} | |"]
    machine = ", ".join(f"{key} {header[key]}" for key in ("device", "precision", "engine") if key in header)
    lines += ["", f"{machine}. `python -m reports.studies.general_suite` makes this table again.", ""]
    return "\n".join(lines)


def _task_line(result: StudyResult, name: str) -> str:
    ratio = result.signal_to_noise[name]
    cells = [name, _range(result, name), _rank(result.task_ranks[name]), _format_number(ratio)]
    remark = "" if (ratio or 0) >= ENOUGH else "ranks by noise"
    return f"| {' | '.join(cells)} | {'not in the macro' if name in result.left_out else remark} |"


def _is_lost(change: Change) -> bool:
    return change.delta < -2 * change.se


def _range(result: StudyResult, name: str) -> str:
    deltas = [by_task[name].delta for by_task in result.changes.values()]
    form = formatting.plain if name.endswith("_text") else formatting.points
    return f"{form(min(deltas))} to {form(max(deltas))}"


def _rank(r: Rank) -> str:
    return f"{r.rho:.2f} [{r.low:.2f}, {r.high:.2f}]".replace("-", "−").replace(
        "nan", formatting.UNKNOWN
    )


def _format_number(x: float | None) -> str:
    return formatting.UNKNOWN if x is None else f"{x:.1f}"


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def main() -> None:
    """Run the missing parts of the study, and write its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "general_suite")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports")
    parser.add_argument("--tiny", action="store_true", help="four short LoRAs and few items: not evidence")
    options = parser.parse_args()
    datasets = os.environ.get("HARNESS_DATASETS_DIR")
    if not datasets:
        parser.error("HARNESS_DATASETS_DIR is not set: name the folder of the benchmarks' local copies")
    size = Size(6, 6, 3, 4, (1e-3, 2e-3), (1, 2)) if options.tiny else Size()
    path = prepare(options.folder, size, Path(datasets))
    report = harness.compare(path, progress=TerminalProgress())
    result = study(report)
    for facts in report.facts:
        if facts.state == "failed":
            sys.stderr.write(f"left out: {facts.label}, {facts.error}\n")
    options.reports.mkdir(parents=True, exist_ok=True)
    text = markdown(result, size, report.header)
    (options.reports / "general_suite_study.md").write_text(text, "utf-8")
    plain = to_plain({"size": size, "header": report.header, **result._asdict()})
    (options.reports / "general_suite_study.json").write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
