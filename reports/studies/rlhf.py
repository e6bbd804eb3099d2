"""Gains and costs of a reward model, RLOO, GRPO and DPO on the embedded model. Run by hand.

All start from one LoRA trained to sort the quickstart's messages, with short prompts in plain text. GRPO and RLOO are
rewarded by a rule (`token_f1`) or by a reward model (`judge`) trained on the quickstart's pairs; DPO learns from the
same pairs.

`python -m reports.studies.rlhf` needs about two and a half hours on a core of 30 GFLOP/s and writes `reports/rlhf.md`; a second call
resumes the first one. `--folder` names the folder of its runs.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import harness
from harness import config, formatting
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.verdict import WORDS
from harness.cli.progress_bar import TerminalProgress
from harness.experiment import Scope, prepare_session
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.run_remarks import measure_reward_gain
from harness.experiment.trials import fit_work
from harness.progress import SilentProgress
from harness.records import TrainingRecord
from harness.report import ExperimentReport
from harness.stats import wilson
from reports.studies.recipe_search import ROOT, SUITES, read_suite

GENERAL = {"grammar": 40, "arithmetic": 40, "chat_facts": 12}
LORA = {"r": 16, "learning_rate": 1.0e-3, "num_train_epochs": 1, "per_device_train_batch_size": 4}
DRAWN = {
    "num_generations": 8,
    "max_completion_length": 10,
    "per_device_train_batch_size": 16,
    "learning_rate": 2.0e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "beta": 0.02,
    "max_steps": 24,
}
JUDGE = {"learning_rate": 5.0e-4, "num_train_epochs": 1, "per_device_train_batch_size": 4, "heldout": 0.35}
DPO = {"beta": 0.1, "learning_rate": 1.0e-4, "max_steps": 6}


def _rewarded(method: str, reward: str, **changes: Any) -> dict[str, Any]:
    return {
        "method": method,
        "init_from": "lora",
        "train": ["later.jsonl"],
        "reward": reward,
        "params": DRAWN | changes,
    }


CANDIDATES: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "train": ["first.jsonl"], "params": LORA},
    "judge": {"method": "reward", "params": JUDGE},
    "dpo": {"method": "dpo", "init_from": "lora", "params": DPO},
    "grpo-f1": _rewarded("grpo", "token_f1"),
    "rloo-f1": _rewarded("rloo", "token_f1"),
    "grpo-judge": _rewarded("grpo", "judge", max_steps=64),
    "rloo-judge": _rewarded("rloo", "judge"),
}
HEAD = """\
# Rewards and pairs on the embedded model

All start from one LoRA (`lora`) of SmolLM2-135M-Instruct, trained to sort {n_first} of the quickstart's messages, which
has learned little more than how an answer begins. RLOO and GRPO sample eight answers to each prompt of the other messages,
two prompts per step, and learn from their reward: by a rule, `token_f1` with the row's answer, or by a
reward model. The reward model, `judge`, was trained on {n_pairs} of the quickstart's pairs and rates the chosen answer higher
in {judge} % of {n_heldout} held-out pairs; `dpo` learned from the same pairs. One training each, one seed:
the spread between trainings is unknown.

{found}

`python -m reports.studies.rlhf` made this page on {device}. The reward on validation is that of the likeliest answer
to each of {n_validated} prompts, before the training and after it. The gain over `lora` is paired, over {n_test} test
items; other skills are the mean change over {n_tasks} small general tasks against the base. In brackets: 95 %
intervals.

| candidate | reward on validation | its change | target, EM | gain over `lora` | other skills | gate |
|---|---|---|---|---|---|---|
"""
FOUND = """\
- **All four rewards rose beyond their noise on validation**, that of `grpo-judge` in 64 steps: a first training of 24 steps,
  as the others had, gave +0.30 [−0.11, +0.71] on another machine. The mean reward of the sampled answers in the first and
  last four steps: `grpo-f1` 0.27 and 0.62, `rloo-f1` 0.27 and 0.67, `grpo-judge` 0.82 and 1.87, `rloo-judge` 0.77 and 1.42.
- **A rule that states the goal can teach the task; a learned reward is gamed.** `rloo-f1` sorts 28 % of the test
  messages, its start 3 %. `grpo-f1` learned the form and half of the answer: it calls 43 of 52 validation messages
  calm, and names no existing queue. `grpo-judge` and `rloo-judge` raised their reward most and sort none: they answer
  `queue: KYRUMPPYLAYERRYLA` or `queue: CRASH_2023_08`. The reward model ranks 87 % of real pairs correctly, but it never saw
  such answers, and rates them high. A rising reward is not evidence of a better model; the target is.
- **No forgetting is shown** by these few general items.
- **DPO is the cheaper use of the same pairs**: a minute and a half, against 17 to 24 of the time on a processor. Its target does not differ from
  that of `lora` beyond noise, though, and the rule needs no pairs."""
COSTS = """\

Cost of each training, without its starting point and the reward model. Tokens read and generated are those
that `--dry-run` counts in addition to the trained ones: prompts to answer, the reference, a reward model, and at most the longest answers.
Other programs ran on the machine; the table shows the share of the time that a training waited for a processor.

| training | steps | tokens trained on | read | generated | minutes | waited for a processor | peak memory, GiB |
|---|--:|--:|--:|--:|--:|--:|--:|
"""


def main() -> None:
    """Run the missing trainings, and write the page."""
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
    for name, part in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part), "utf-8")
    general = read_suite("general")
    tasks = [task for task in general["tasks"] if task["name"] in GENERAL]
    for task in tasks:
        task["limit"] = GENERAL[task["name"]]
    (folder / "general.yaml").write_text(yaml.safe_dump(general | {"tasks": tasks}), "utf-8")
    target = {
        "name": "sorting",
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test", "pairs")}
        | {"limits": {"test": 60}},
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
    """Write the page: gains, forgetting and cost of each candidate."""
    session = prepare_session(config.load(path), Scope(), SilentProgress())
    judge = find_stored_weights(session, session.candidates["judge"], 0)
    assert judge is not None
    n_heldout, accuracy = judge.training.n_heldout or 0, judge.training.heldout_accuracy[-1][1] or 0.0
    trained = {facts.name: facts.training for facts in report.facts}
    head = HEAD.format(
        n_first=len(session.training_data(session.candidates["lora"].source).items.train),
        n_pairs=judge.training.n_pairs,
        judge=formatting.interval(accuracy, *wilson(accuracy * n_heldout, n_heldout)),
        n_heldout=n_heldout,
        found=FOUND,
        device=f"{report.header['device']} in {report.header['precision']}",
        n_validated=len(session.target.items.validation),
        n_test=len(session.target.items.test),
        n_tasks=len(GENERAL),
    )
    costs = []
    for name, training in (trained | {"judge": judge.training}).items():
        work = fit_work(session, session.candidates[name].source, 0)
        costs.append(_cost_cells(name, training, (work.read, work.generated)))
    rows = "".join(f"{_row(_result_cells(facts, report))}\n" for facts in report.facts)
    return head + rows + COSTS + "".join(f"{_row(cells)}\n" for cells in costs)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _result_cells(facts: CandidateFacts, report: ExperimentReport) -> list[str]:
    gain, target, verdict = measure_reward_gain(facts.training), facts.target, facts.verdict
    steps = report.steps.get(facts.name, ())
    over_lora = next((step.target for step in steps if step.base == "lora"), None)
    macro = verdict and verdict.macro
    return [
        f"`{facts.name}`",
        f"{formatting.plain(gain.before)} → {formatting.plain(gain.after)}" if gain else "–",
        formatting.plain(gain.change, gain.low, gain.high, sign=True) if gain else "–",
        formatting.interval(target.score, target.low, target.high) if target else "–",
        formatting.points(over_lora.delta, over_lora.low, over_lora.high) if over_lora else "–",
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
