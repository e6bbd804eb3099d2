"""Notes on prompts: sentences on those that promptings make for the items, before anything is asked.

Invariant: no model is loaded, and no prompt is built.
"""

from collections.abc import Iterable, Iterator

from harness.evaluation.session import Session
from harness.experiment.runs.k_fold import fold_sessions
from harness.prompting import PromptingContext, prompting_remarks


def prompting_notes(session: Session, names: Iterable[str]) -> list[str]:
    """Say of candidates, and of the tasks of suites, where prompts hold less than is written."""
    said: dict[str, list[str]] = {}
    for name in names:
        for note in _notes_of(session, name):
            said.setdefault(note, []).append(name)
    for suite in session.suites:
        if suite.task.num_fewshot and not suite.task.lm_eval:
            shots = {"few_shot": {"shots": suite.task.num_fewshot}}
            context = PromptingContext(suite.task, suite.items.train, (), 0, dry_run=True)
            for note in prompting_remarks(shots, context, suite.items.test):
                said.setdefault(note, []).append(suite.task.name)
    return [f"{', '.join(dict.fromkeys(of))}: {note}" for note, of in said.items()]


def _notes_of(session: Session, name: str) -> Iterator[str]:
    """Yield what the prompts that a candidate has or tries say of the target's items, in each fold."""
    for trial in session.candidates[name].trials:
        for one in fold_sessions(session) or [session]:
            target, items = one.target, one.target.items
            context = PromptingContext(target.task, items.train, items.documents, 0, dry_run=True)
            asked = [*items.validation, *items.test]
            yield from prompting_remarks(trial.recipe.prompting, context, asked)
