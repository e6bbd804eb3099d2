"""Gate of external evaluation logs: lm-eval's samples or inspect's logs of two models, paired by item.

Invariant: items are paired by their id and only where both models had the same prompt; nothing is
computed that needs a model.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness import gating
from harness.errors import IncompatibleRuns, Problem, UserError, did_you_mean
from harness.gating import GateResult
from harness.release.eval_logs import TaskLog, differences, measurement, task_names
from harness.release.inspect_logs import log_files, read_logs
from harness.release.lm_eval_logs import read_samples, sample_files
from harness.spec import GatePolicy

Reader = Callable[[Path], dict[str, TaskLog]]


def gate_folders(base: Path, candidate: Path, policy: GatePolicy) -> GateResult:
    """Judge one model's logged samples against another's, over the tasks that both hold.

    A task that only one holds leaves the verdict open, unless `gate.tasks` names those to judge. Every
    task is a capability task. Of inspect a single log will do as well as a folder of them.

    Raises:
        UserError: there is nothing to read, a file is damaged, or both are the same folder.
        IncompatibleRuns: no task is in both, or items, prompts, versions or precision differ.
    """
    old, new = (_reader(path)(path) for path in (base, candidate))
    if base.resolve() == candidate.resolve():
        step = "name the folder of the other model"
        raise UserError(Problem("--candidate", f"{candidate}, which is --base too", "another model's", step))
    known = list(dict.fromkeys([*old, *new]))
    if unknown := [name for name in policy.tasks if name not in known]:
        expected = "tasks that one of the two answered"
        raise UserError(
            [Problem("gate.tasks", f"unknown task {n!r}", expected, did_you_mean(n, known)) for n in unknown]
        )
    wanted = list(policy.tasks) or known
    shared = [name for name in wanted if name in old and name in new]
    if not shared:
        raise IncompatibleRuns(
            f"found no task {'of gate.tasks ' if policy.tasks else ''}in both ({', '.join(old)} and "
            f"{', '.join(new)}); expected the same; "
            "next: evaluate both models on the same tasks with one evaluator"
        )
    problems = [problem for name in shared for problem in differences(old[name], new[name])]
    if problems:
        raise IncompatibleRuns("\n".join(problems))
    missing = [name for name in wanted if name not in shared]
    left_out = [name for name in known if name not in wanted]
    notes = [f"only in one of the two, left out: {', '.join(missing)}"] if missing else []
    notes += [f"not named by gate.tasks, left out: {', '.join(left_out)}"] if left_out else []
    names = task_names(known)
    measured = [measurement(names[name], old[name], new[name]) for name in shared]
    renamed = {key: tuple(names.get(n, n) for n in getattr(policy, key)) for key in ("tasks", "critical")}
    policy = policy.model_copy(update=renamed)
    absent = [names[name] for name in missing]
    result = gating.judge(measured, policy, target=None, identical=False, missing=absent)
    return replace(result, candidate=candidate.name, baseline=base.name, notes=tuple(notes))


def _reader(path: Path) -> Reader:
    """Tell by its files who wrote a folder; a single file is a log of inspect."""
    samples = bool(sample_files(path)) if path.is_dir() else False
    logs = bool(log_files(path))
    if samples and logs:
        found = "samples of lm-eval and logs of inspect"
        raise UserError(Problem(str(path), found, "one of them", "give each a folder of its own"))
    if not samples and not logs:
        found = "neither" if path.exists() else "no such file or folder"
        expected = "samples of lm-eval or of harness eval -s, or logs of inspect"
        step = "run lm_eval with --log_samples --output_path DIR, or inspect eval with --log-dir DIR"
        raise UserError(Problem(str(path), found, expected, step))
    return read_samples if samples else read_logs
