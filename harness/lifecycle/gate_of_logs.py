"""Gate of two models' external logs, of lm-eval or inspect, whose items are paired by id."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.analysis import gate_verdict
from harness.analysis.gate_verdict import GateResult
from harness.errors import IncompatibleRuns, Problem, UserError, did_you_mean, gather, refuse
from harness.formatting import pluralize
from harness.lifecycle import eval_logs, inspect_logs
from harness.lifecycle.eval_logs import Arm
from harness.records import digest
from harness.spec import GatePolicy


def gate_folders(base: Path, candidate: Path, policy: GatePolicy) -> GateResult:
    """Judge one model's logged samples against another's, over the tasks that both hold.

    A task that only one holds leaves the verdict open, unless `gate.tasks` names those to judge; a task
    without one rate per item is not compared. A path is a folder, or a file that names one evaluation.
    """
    unreadable: list[Problem] = []
    arms = []
    for option, path in (("--base", base), ("--candidate", candidate)):
        with gather(unreadable):
            samples = eval_logs.find_lm_eval(path)
            logs = inspect_logs.find_evaluations(path) if path.is_dir() or not samples else []
            if samples and logs:
                found = "samples of lm-eval and logs of inspect"
                raise UserError(str(path), found, "one of them", "give each a folder of its own")
            if not samples and not logs:
                found = "neither" if path.exists() else "no such file or folder"
                found += "".join(f"; {link} is a link, which is not followed" for link in _list_links(path))
                expected = "samples of lm-eval or of harness eval -s, or logs of inspect"
                step = "run lm_eval with --log_samples --output_path DIR, or inspect eval with --log-dir DIR"
                raise UserError(str(path), found, expected, step)
            arms.append(eval_logs.read_arm(option, path, samples or logs, policy.tasks))
    refuse(unreadable)
    old, new = arms
    tasks = list(dict.fromkeys([*old.names, *new.names, *old.unfinished, *new.unfinished]))
    if unknown := [name for name in policy.tasks if name not in tasks]:
        expected = "tasks that one of the two answered"
        raise UserError(
            [Problem("gate.tasks", f"unknown task {n!r}", expected, did_you_mean(n, tasks)) for n in unknown]
        )
    not_compared = {**old.not_compared, **new.not_compared}
    judged_names = [name for name in policy.tasks or tasks if name not in not_compared]
    shared = [name for name in judged_names if name in old.tasks and name in new.tasks]
    in_one = [problem for name, problem in not_compared.items() if name in old.tasks or name in new.tasks]
    if refused := in_one or list(not_compared.values()) * bool(policy.tasks or not shared):
        raise UserError(refused)
    if not shared:
        raise IncompatibleRuns(
            f"found no task {'of gate.tasks ' if policy.tasks else ''}in both ({', '.join(old.names)} and "
            f"{', '.join(new.names)}); expected the same; "
            "next: evaluate both models on the same tasks with one evaluator"
        )
    problems = [p for name in shared for p in eval_logs.differences(old.tasks[name], new.tasks[name])]
    if problems:
        raise IncompatibleRuns("\n".join(problems))
    answers = [{n: [i.answer for _, i in sorted(arm.tasks[n].items.items())] for n in shared} for arm in arms]
    same = [name for name in shared if answers[0][name] == answers[1][name]]
    if same == shared:
        n = sum(len(old.tasks[name].items) for name in shared)
        found = f"the answers of --base {base} again, the same in all of {pluralize(n, 'item')}"
        step = "name the logs of the other model"
        raise UserError(f"--candidate {candidate}", found, "another evaluation of another model", step)
    # A digest is added to names of tasks that would be equal.
    plain = {name: eval_logs.NOT_IN_NAMES.sub("-", name) for name in tasks}
    counts = Counter(plain.values())
    names = {name: tag if counts[tag] == 1 else f"{tag}-{digest(name)[:8]}" for name, tag in plain.items()}
    measured = [eval_logs.measurement(names[name], old.tasks[name], new.tasks[name]) for name in shared]
    renamed = {key: tuple(names.get(n, n) for n in getattr(policy, key)) for key in ("tasks", "critical")}
    policy = policy.model_copy(update=renamed)
    absent_names = [names[name] for name in judged_names if name not in shared]
    result = gate_verdict.judge(measured, policy, target=None, identical=False, missing=absent_names)
    left_out = [name for name in tasks if name not in judged_names and name not in not_compared]
    links = [link for path in (base, candidate) for link in _list_links(path)]
    notes = (
        *([f"not named by gate.tasks, left out: {', '.join(left_out)}"] if left_out else []),
        *([f"not finished by both, left out: {', '.join(absent_names)}"] if absent_names else []),
        *_list_notes(old, new, shared, same, not_compared, links),
    )
    labels = (candidate.name, base.name) if new.model == old.model else (new.model, old.model)
    return replace(result, candidate=labels[0], baseline=labels[1], notes=notes)


def _list_links(path: Path) -> list[Path]:
    below = path.rglob("*") if path.is_dir() else ()
    return sorted(link for link in below if link.is_symlink() and link.is_dir())


def _list_notes(
    old: Arm,
    new: Arm,
    shared: Sequence[str],
    same: Sequence[str],
    not_compared: Mapping[str, Problem],
    links: Sequence[Path],
) -> Iterator[str]:
    for name, problem in not_compared.items():
        yield f"{name} is not compared: {problem.found}"
    for link in links:
        yield f"{link} is a link to a folder, which is not followed; next: name that folder itself"
    if old.identity is not None and old.identity == new.identity:
        yield f"the logs of both arms name one model, {new.model}, under one configuration"
    if same:
        yield f"the same answers to every item in both arms, as if copied: {', '.join(same)}"
    unknown = [n for n in shared if any("doc_hash" not in i.digests for i in old.tasks[n].items.values())]
    if unknown:
        yield f"items paired by their id alone, as no document is logged: {', '.join(unknown)}"
    unlogged = [(n, log) for n, log in new.tasks.items() if n in shared and not log.is_direction_logged]
    guessed = [
        f"{log.metric} of {name}, {'higher' if log.higher_is_better else 'lower'}"
        for name, log in unlogged
        if not eval_logs.is_named(log.metric, eval_logs.HIGHER)
    ]
    if guessed:
        yield f"whether higher or lower is better is not logged and told by the name: {', '.join(guessed)}"
