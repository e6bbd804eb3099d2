"""What do a reward model, RLOO, GRPO and DPO bring on the embedded model, and at what cost? By hand.

All start at one LoRA of the quickstart's messages to sort. RLOO and GRPO are rewarded by a rule (`token_f1`) and by
a reward model (`judge`) that was trained on the quickstart's pairs, DPO learns from the same pairs, and `more-rows`
is a plain LoRA on the rows whose prompts RLOO and GRPO draw their answers to. Prompts are plain texts, which are
short.

`python -m reports.studies.rlhf` needs about an hour on one busy core and writes `reports/rlhf.md`; a second call
goes on where the first one stopped. `--folder` says where its runs are kept, and `--page` only writes the page.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import harness
from harness import config, formatting
from harness.cli.progress_bar import TerminalProgress
from harness.analysis.decision import CandidateFacts
from harness.experiment import Scope, prepare_session
from harness.experiment.run_remarks import measure_reward_gain
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.training_fit import fit_work
from harness.analysis.gating import WORDS
from harness.progress import SilentProgress
from harness.records import TrainingRecord
from harness.report import ExperimentReport
from harness.stats import wilson

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "suites"
GENERAL = {"grammar": 60, "reading": 20, "chat_facts": 20}
LORA = {"r": 16, "learning_rate": 1.0e-3, "num_train_epochs": 1, "per_device_train_batch_size": 4}
DRAWN = {
    "num_generations": 4,
    "max_completion_length": 10,
    "per_device_train_batch_size": 8,
    "max_steps": 12,
    "learning_rate": 3.0e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "beta": 0.02,
}
JUDGE = {"learning_rate": 5.0e-4, "num_train_epochs": 1, "per_device_train_batch_size": 4, "heldout": 0.35}
DPO = {"beta": 0.1, "learning_rate": 3.0e-5, "num_train_epochs": 1}
CANDIDATES: dict[str, dict[str, Any]] = {
    "prompt": {"method": "base"},
    "lora": {"method": "lora", "train": ["first.jsonl"], "params": LORA},
    "more-rows": {"method": "lora", "params": LORA},
    "judge": {"method": "reward", "params": JUDGE},
    "dpo": {"method": "dpo", "init_from": "lora", "params": DPO},
} | {
    f"{method}-{name}": {
        "method": method,
        "init_from": "lora",
        "train": ["later.jsonl"],
        "reward": reward,
        "params": DRAWN,
    }
    for method in ("rloo", "grpo")
    for name, reward in (("rule", "token_f1"), ("judge", "judge"))
}
HEAD = """\
# Reinforcement learning and preferences on the embedded model

All start at one LoRA (`lora`) on {n_first} rows of the quickstart's messages to sort. RLOO and GRPO draw {n_drawn}
answers to each of {n_prompts} other prompts and learn from their reward: a rule (`token_f1` with the row's answer)
or a reward model (`judge`) trained on {n_pairs} of the quickstart's pairs. DPO learns from the same pairs.
`more-rows` is a plain LoRA on the rows of both, which is what the answers of these prompts are worth without
reinforcement. Each is trained once, with one seed. {judge}

| candidate | reward on validation, before → after | its change | target, EM | gain over `lora` | other skills | gate |
|---|---|---|---|---|---|---|
"""
COSTS = """\

What each took, without what it starts from. Read and generated are what `--dry-run` counts beside the trained
tokens: answers at most, the reference and the reward model. Minutes are those of a busy machine ({device}).

| training | steps | tokens trained on | read | generated | minutes | waited for a processor | peak memory, GiB |
|---|--:|--:|--:|--:|--:|--:|--:|
"""


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "rlhf")
    path = write_experiment(parser.parse_args().folder)
    report = harness.compare(path, progress=TerminalProgress())
    (ROOT / "reports" / "rlhf.md").write_text(page(path, report), "utf-8")


def write_experiment(folder: Path) -> Path:
    """Write the rows, a part of the general suite and the experiment into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        split: [row for row in _read(split) if row["slice"] == "behaviour"]
        for split in ("train", "validation", "test")
    }
    first = set(sorted({row["cluster"] for row in rows["train"]})[::4])
    rows["first"] = [row for row in rows["train"] if row["cluster"] in first]
    rows["later"] = [row for row in rows["train"] if row["cluster"] not in first]
    rows["pairs"] = [row for row in _read("pairs") if row["chosen"].startswith("queue:")]
    for name, of in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in of), "utf-8")
    general = yaml.safe_load((SUITES / "general.yaml").read_text("utf-8"))
    tasks = [task for task in general["tasks"] if task["name"] in GENERAL]
    for task in tasks:
        task["limit"] = GENERAL[task["name"]]
        task["data"] = {split: str(SUITES / file) for split, file in task["data"].items()}
    (folder / "general.yaml").write_text(yaml.safe_dump(general | {"tasks": tasks}), "utf-8")
    target = {
        "name": "sorting",
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test", "pairs")},
        "metrics": ["exact_match", "token_f1"],
        "fields": {"prompt": "{prompt}\nSorted as"},
        "chat_template": False,
        "max_new_tokens": 12,
    }
    experiment = {
        "name": "feedback",
        "precision": "fp32",
        "device": "cpu",
        "target": target,
        "suites": ["general.yaml"],
        "candidates": CANDIDATES,
        "gate": {"macro": 0.05, "each": 0.15, "target": {"gain": 0.05}},
    }
    path = folder / "harness.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False), "utf-8")
    return path


def _read(split: str) -> list[dict[str, Any]]:
    lines = (SUITES / "support" / f"{split}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def page(path: Path, report: ExperimentReport) -> str:
    """Write what each candidate gained, forgot and took."""
    session = prepare_session(config.load(path), Scope(), SilentProgress())
    judge = find_stored_weights(session, session.candidates["judge"], 0)
    assert judge is not None
    trained = {facts.name: facts.training for facts in report.facts if facts.trained}
    head = HEAD.format(
        n_first=trained["lora"].n_examples or len(_lines(path, "first")),
        n_drawn=DRAWN["num_generations"],
        n_prompts=int(DRAWN["max_steps"])
        * int(DRAWN["per_device_train_batch_size"])
        // int(DRAWN["num_generations"]),
        n_pairs=judge.training.n_pairs,
        judge=_describe_judge(judge.training),
    )
    costs = []
    for name, training in (trained | {"judge": judge.training}).items():
        work = fit_work(session, session.candidates[name].source, 0)
        costs.append(_cost_cells(name, training, (work.read, work.generated)))
    device = report.header.get("device", "")
    rows = "".join(f"{_row(_result_cells(facts, report))}\n" for facts in report.facts)
    return head + rows + COSTS.format(device=device) + "".join(f"{_row(cells)}\n" for cells in costs)


def _lines(path: Path, name: str) -> list[str]:
    return (path.parent / f"{name}.jsonl").read_text("utf-8").splitlines()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _describe_judge(training: TrainingRecord) -> str:
    n, accuracy = training.n_heldout or 0, training.heldout_accuracy[-1][1] or 0.0
    shown = formatting.interval(accuracy, *wilson(accuracy * n, n))
    return f"The reward model prefers the chosen answer of {shown} % of {n} pairs that were held out."


def _result_cells(facts: CandidateFacts, report: ExperimentReport) -> list[str]:
    gain, target, verdict = measure_reward_gain(facts.training), facts.target, facts.verdict
    steps = report.steps.get(facts.name, ())
    over = next((step.target for step in steps if step.base == "lora"), None)
    macro = verdict and verdict.macro
    return [
        f"`{facts.name}`",
        f"{formatting.plain(gain.before)} → {formatting.plain(gain.after)}" if gain else "–",
        formatting.plain(gain.change, gain.low, gain.high, sign=True) if gain else "–",
        formatting.interval(target.score, target.low, target.high) if target else "–",
        formatting.points(over.delta, over.low, over.high) if over else "–",
        formatting.points(macro.score, macro.low, macro.high) if macro else "–",
        WORDS[verdict.outcome] if verdict else "–",
    ]


def _cost_cells(name: str, training: TrainingRecord, extra: tuple[int, int]) -> list[str]:
    return [
        f"`{name}`",
        *map(formatting.count, (training.n_steps, training.n_tokens, *extra)),
        f"{(training.wall_s or 0.0) / 60:.1f}",
        f"{formatting.percent(training.waited_share)} %",
        f"{training.peak_memory_gib or 0:.1f}",
    ]


if __name__ == "__main__":
    main()
