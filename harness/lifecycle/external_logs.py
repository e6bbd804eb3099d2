"""Gate of external evaluation logs: lm-eval's samples or inspect's logs of two models, paired by item.

Invariant: items are paired by their id and only where both models had the same prompt; nothing is
computed that needs a model.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.analysis import gating
from harness.analysis.gating import GateResult
from harness.errors import IncompatibleRuns, Problem, UserError, did_you_mean, gather, refuse
from harness.formatting import figure, pluralize
from harness.lifecycle import eval_logs, inspect_logs, lm_eval_logs
from harness.lifecycle.eval_logs import Arm
from harness.spec import GatePolicy


def gate_folders(base: Path, candidate: Path, policy: GatePolicy) -> GateResult:
    """Judge one model's logged samples against another's, over the tasks that both hold.

    A task that only one holds leaves the verdict open, unless `gate.tasks` names those to judge. One without
    a rate of each item is named and not compared, unless it is named there. Every task is a capability task.
    A path is a folder, or a file that names one evaluation.

    Raises:
        UserError: there is nothing to read, a file is damaged, or an arm is several models or the other arm.
        IncompatibleRuns: no task is in both, or items, prompts, versions or precision differ.
    """
    old, new = _read_arms(base, candidate, policy.tasks)
    known = list(dict.fromkeys([*old.names, *new.names, *old.unfinished, *new.unfinished]))
    if unknown := [name for name in policy.tasks if name not in known]:
        expected = "tasks that one of the two answered"
        raise UserError(
            [Problem("gate.tasks", f"unknown task {n!r}", expected, did_you_mean(n, known)) for n in unknown]
        )
    not_compared = {**old.not_compared, **new.not_compared}
    wanted = [name for name in policy.tasks or known if name not in not_compared]
    shared = [name for name in wanted if name in old.tasks and name in new.tasks]
    in_one = [problem for name, problem in not_compared.items() if name in old.tasks or name in new.tasks]
    if refused := in_one or list(not_compared.values()) * bool(policy.tasks or not shared):
        raise UserError(refused)
    if not shared:
        raise IncompatibleRuns(
            f"found no task {'of gate.tasks ' if policy.tasks else ''}in both ({', '.join(old.names)} and "
            f"{', '.join(new.names)}); expected the same; "
            "next: evaluate both models on the same tasks with one evaluator"
        )
    problems = [
        problem for name in shared for problem in eval_logs.differences(old.tasks[name], new.tasks[name])
    ]
    if problems:
        raise IncompatibleRuns("\n".join(problems))
    answers = [
        {name: [item.answer for _, item in sorted(arm.tasks[name].items.items())] for name in shared}
        for arm in (old, new)
    ]
    same = [name for name in shared if answers[0][name] == answers[1][name]]
    if same == shared:
        n = sum(len(old.tasks[name].items) for name in shared)
        found = f"the answers of --base {base} again, the same in all of {pluralize(n, 'item')}"
        step = "name the logs of the other model"
        raise UserError(
            Problem(f"--candidate {candidate}", found, "another evaluation of another model", step)
        )
    names = eval_logs.task_names(known)
    measured = [eval_logs.measurement(names[name], old.tasks[name], new.tasks[name]) for name in shared]
    renamed = {key: tuple(names.get(n, n) for n in getattr(policy, key)) for key in ("tasks", "critical")}
    policy = policy.model_copy(update=renamed)
    absent = [names[name] for name in wanted if name not in shared]
    result = gating.judge(measured, policy, target=None, identical=False, missing=absent)
    left_out = [name for name in known if name not in wanted and name not in not_compared]
    links = [link for path in (base, candidate) for link in _list_links(path)]
    notes = (
        *([f"not named by gate.tasks, left out: {', '.join(left_out)}"] if left_out else []),
        *([f"not finished by both, left out: {', '.join(absent)}"] if absent else []),
        *_list_notes(old, new, shared, same, not_compared, links),
    )
    labels = (candidate.name, base.name) if new.model == old.model else (new.model, old.model)
    return replace(result, candidate=labels[0], baseline=labels[1], notes=notes)


def _read_arms(base: Path, candidate: Path, wanted: Collection[str]) -> tuple[Arm, Arm]:
    """Read both arms; refuse with the problems of both at once."""
    problems: list[Problem] = []
    arms = []
    for option, path, other in (("--base", base, candidate), ("--candidate", candidate, base)):
        with gather(problems):
            samples = lm_eval_logs.find_evaluations(path)
            logs = inspect_logs.find_evaluations(path) if path.is_dir() or not samples else []
            if samples and logs:
                found = "samples of lm-eval and logs of inspect"
                raise UserError(Problem(str(path), found, "one of them", "give each a folder of its own"))
            if not samples and not logs:
                found = "neither" if path.exists() else "no such file or folder"
                found += "".join(f"; {link} is a link, which is not followed" for link in _list_links(path))
                expected = "samples of lm-eval or of harness eval -s, or logs of inspect"
                step = "run lm_eval with --log_samples --output_path DIR, or inspect eval with --log-dir DIR"
                raise UserError(Problem(str(path), found, expected, step))
            arms.append(eval_logs.read_arm(option, path, samples or logs, other, wanted))
    refuse(problems)
    old, new = arms
    return old, new


def _list_links(path: Path) -> list[Path]:
    """List the links to folders below a folder."""
    below = path.rglob("*") if path.is_dir() else ()
    return sorted(one for one in below if one.is_symlink() and one.is_dir())


def _list_notes(
    old: Arm,
    new: Arm,
    shared: Sequence[str],
    same: Sequence[str],
    not_compared: Mapping[str, Problem],
    links: Sequence[Path],
) -> Iterator[str]:
    """Name what has no part in the verdict, then what the logs leave in doubt: models, items and scores."""
    for name, problem in not_compared.items():
        yield f"{name} is not compared: {problem.found}"
    for link in links:
        yield f"{link} is a link to a folder, which is not followed; next: name that folder itself"
    for option, arm in (("--base", old), ("--candidate", new)):
        if len(arm.addresses) > 1:
            yield f"{option}: one model by its name, served at {' and '.join(arm.addresses)}"
    if old.identity is not None and (old.identity, old.addresses) == (new.identity, new.addresses):
        yield f"the logs of both arms name one model, {new.model}, under one configuration"
    if same:
        yield f"the same answers to every item in both arms, as if copied: {', '.join(same)}"
    unknown, worse, guessed = list[str](), list[str](), list[str]()
    for name, log in ((name, new.tasks[name]) for name in shared):
        if not all("doc_hash" in item.digests for item in old.tasks[name].items.values()):
            unknown.append(name)
        for score, after in log.not_compared.items():
            before = old.tasks[name].not_compared.get(score)
            if before is not None and (
                after > before if eval_logs.is_lower_better(score) else after < before
            ):
                worse.append(f"{score} of {name} {figure(before)} → {figure(after)}")
        if not log.is_direction_logged and not eval_logs.is_named(log.metric, eval_logs.HIGHER):
            guessed.append(f"{log.metric} of {name}, {'higher' if log.higher_is_better else 'lower'}")
    if unknown:
        yield f"items paired by their id alone, as no document is logged: {', '.join(unknown)}"
    if worse:
        yield f"worse and not compared, as the first rate of a task decides: {', '.join(worse)}"
    if guessed:
        yield f"whether higher or lower is better is not logged and told by the name: {', '.join(guessed)}"
