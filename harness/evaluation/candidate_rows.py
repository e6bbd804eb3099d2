"""Rows that each candidate trains on, what overlaps with evaluated items, and the cost of regularisers.

Invariant: whatever the training rows are, the same test items are evaluated, and no training row repeats one
of them or an item of a suite. Rows equal to the target's make the same weights.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil

from harness import plugins, regularizers
from harness.config.recipe_checks import check_rows_file
from harness.data import (
    PartName,
    SourcedExample,
    TaskItems,
    describe_source,
    load_training_rows,
    shown_paths,
    suite_contamination,
)
from harness.data.column_roles import column_options, option_text
from harness.data.contamination import Encode, overlap_notes
from harness.data.edit.row_files import is_taught, n_rows_of, payments_for, take_share, total_usd
from harness.data.readers import file_of
from harness.data.text_files import display_path
from harness.errors import Problem, UserError, gather, refuse
from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate, add_lineage, digest_training_rows
from harness.evaluation.lm_eval import bridge
from harness.evaluation.session import Fold, MeasuredTask, join_items
from harness.formatting import count, percent
from harness.models.hub import ModelSource
from harness.records import digest
from harness.regularizers import Answered, MixContext, Mixture
from harness.spec import Experiment, Fields, Recipe, Task


def read_training_rows(
    experiment: Experiment,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, bridge.LmEvalTask],
    n_pairs: int | None = None,
    encode: Encode | None = None,
) -> dict[str, MeasuredTask]:
    """Read the rows of candidates that train on their own, by key; UserError with the problems of all."""
    tasks_by_key: dict[str, MeasuredTask] = {}
    problems: list[Problem] = []
    for recipe in experiment.candidates.values():
        key = digest_training_rows(recipe)
        if not key or key in tasks_by_key or recipe.method not in plugins.names("methods"):
            continue
        if any([*check_rows_file(file, "train", "rows to train on")] for file in recipe.row_paths):
            continue  # of a candidate that is not selected; those of selected ones exist
        with gather(problems):
            target, seed = experiment.target, experiment.seeds[0]
            rows, pairs = items[target.name], _trains_on_pairs(recipe)
            rows = rows.without_test() if rows.folds else rows  # the released weights train on every row
            rows = load_training_rows(target, rows, recipe.train, recipe.mix, seed, pairs=pairs)
            rows = replace(rows, pairs=rows.pairs[:n_pairs])
            files: dict[PartName, str] = {"pairs" if pairs else "train": " and ".join(shown_paths(recipe))}
            task_items = refuse_or_note(target, {**items, target.name: rows}, catalogue, files, encode)
            tasks_by_key[key] = join_items(experiment.target, "target", experiment.target.name, task_items)
    refuse(problems)
    return tasks_by_key


def read_folds(
    experiment: Experiment,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, bridge.LmEvalTask],
    n_pairs: int | None = None,
) -> tuple[Fold, ...]:
    """Return the folds of the target with the rows of every candidate in each; empty without folds."""
    target, target_items = experiment.target, items[experiment.target.name]
    folds = []
    for fold in range(1, max(target_items.folds.values(), default=0) + 1):
        fold_items = target_items.in_fold(fold)
        training = read_training_rows(experiment, {**items, target.name: fold_items}, catalogue, n_pairs)
        folds.append(Fold(join_items(target, "target", target.name, fold_items), training))
    return tuple(folds)


def describe_training_rows(
    resolved: Mapping[str, ResolvedCandidate],
    selected: Iterable[str],
    training_data: Callable[[Recipe], MeasuredTask],
    *,
    in_folds: bool,
) -> list[str]:
    """Describe the rows that the selected candidates, and those whose weights they use, were trained on."""
    needed = add_lineage(selected, resolved)
    candidates = {name: candidate for name, candidate in resolved.items() if name in needed}
    names_by_note: dict[str, list[str]] = {}
    for name, candidate in candidates.items():
        recipe = candidate.source
        if name != candidate.source_name or not digest_training_rows(recipe):
            continue
        rows = training_data(recipe)
        for note in (f"trains on {describe_rows(rows, recipe)}", *rows.items.notes):
            names_by_note.setdefault(note, []).append(name)
    if in_folds and (made_names := [n for n, c in candidates.items() if c.method.made_elsewhere]):
        note = "made elsewhere; whatever it was trained on of the target's rows, the folds test it on too"
        names_by_note[note] = made_names
    return [f"{', '.join(names)}: {note}" for note, names in names_by_note.items()]


def describe_rows(measured: MeasuredTask, recipe: Recipe) -> str:
    """Name files and number of a recipe's training rows, or shares; empty for the target's."""
    if not digest_training_rows(recipe):
        return ""
    rows, kind = _list_rows(measured, recipe), "pairs" if _trains_on_pairs(recipe) else "rows"
    source = describe_source(recipe)
    if recipe.mix:
        n_drawn = Counter(file_of(row.where) for row in rows)
        source = " + ".join(f"{percent(n_drawn[file] / len(rows))} % {file}" for file in shown_paths(recipe))
    return f"{source}: {count(len(rows))} {kind}"


def rows_cost_usd(candidate: ResolvedCandidate, training_data: Callable[[Recipe], MeasuredTask]) -> float:
    """Add up the USD paid to a teacher for a candidate's rows; a mixture costs the share it drew."""
    shares: dict[tuple[str, float], None] = {}
    for recipe in candidate.lineage.values():
        measured = training_data(recipe)
        for file in row_files(measured.task, recipe):
            share = 1.0
            if recipe.mix and (n := n_rows_of(file)):
                places = {row.where for row in _list_rows(measured, recipe)}
                share = sum(file_of(where) == display_path(file) for where in places) / n
            shares[file, share] = None
    return total_usd(payment for file, share in shares for payment in take_share(payments_for(file), share))


def _trains_on_pairs(recipe: Recipe) -> bool:
    return plugins.method(recipe.method).draws_from == "pairs"


def _list_rows(measured: MeasuredTask, recipe: Recipe) -> list[SourcedExample]:
    return measured.items.list_sourced("pairs" if _trains_on_pairs(recipe) else "train")


def n_rows(measured: MeasuredTask, recipe: Recipe) -> int:
    """Count the labelled rows of a recipe, each once even if a mixture drew it several times."""
    return len(_label_rows(measured) if recipe.train or recipe.mix else measured.items.train)


def n_taught_rows(measured: MeasuredTask, recipe: Recipe) -> int:
    """Count the rows labelled by a teacher; UserError if a file's manifest cannot be read."""
    taught_files = {display_path(file) for file in row_files(measured.task, recipe) if is_taught(file)}
    return sum(file_of(where) in taught_files for where, _ in _label_rows(measured)) if taught_files else 0


def _label_rows(measured: MeasuredTask) -> set[tuple[str, str]]:
    """Return place and content of the training rows; several answers of a conversation share a place."""
    rows = measured.items.list_sourced("train")
    return {(row.where, digest([row.example.messages, row.example.references])) for row in rows}


def row_files(task: Task, recipe: Recipe) -> tuple[str, ...]:
    """List the source files of a recipe's training rows or pairs; empty if it reads none."""
    part = plugins.method(recipe.method).draws_from
    source = task.data.source(part) if part else None
    return recipe.row_paths or ((source,) if source else ())


def refuse_or_note(
    target: Task,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, bridge.LmEvalTask],
    files: Mapping[PartName, str] | None = None,
    encode: Encode | None = None,
) -> TaskItems:
    """Note training rows that may paraphrase evaluated items; UserError if a suite has a row's prompt."""
    own_items = items[target.name]
    if own_items.folds:  # all rows against items outside the folds, each fold's rows against its own items
        unfolded = {**items, target.name: own_items.without_test()}
        overlap = list(refuse_or_note(target, unfolded, catalogue, encode=encode).overlap)
        for fold in range(1, max(own_items.folds.values()) + 1):
            fold_items = {target.name: replace(own_items.in_fold(fold), validation=())}
            held_notes = refuse_or_note(target, fold_items, {}, encode=encode).overlap
            overlap += (f"fold {fold}: {note}" for note in held_notes)
        return replace(own_items, overlap=tuple(overlap))
    suites = {name: other_items.test for name, other_items in items.items() if name != target.name}
    suites |= {name: lm_task.texts for name, lm_task in catalogue.items()}
    refuse(suite_contamination([*own_items.list_sourced("train"), *own_items.list_sourced("pairs")], suites))
    evaluated = [*own_items.list_sourced("validation"), *own_items.list_sourced("test")]
    for name, other_items in items.items():
        evaluated += other_items.list_sourced("test") if name != target.name else []
    for name, lm_task in catalogue.items():
        evaluated += [SourcedExample(example, f"{name} document {example.id}") for example in lm_task.texts]
    notes: list[str] = []
    parts: tuple[PartName, ...] = ("train", "pairs")
    file_by_part = files or {part: display_path(target.data.source(part) or "") for part in parts}
    prompt, reference = target.fields.prompt, target.fields.reference
    columns = column_options(option_text(prompt, Fields().prompt), option_text(reference, Fields().reference))
    flags, choice = "".join(f" {shlex.quote(word)}" for word in columns), target.kind == "choice"
    source = display_path(target.data.source("train") or "")
    for part, file in file_by_part.items():
        notes += overlap_notes(own_items.list_sourced(part), evaluated, file, choice, encode, flags, source)
    return replace(own_items, overlap=tuple(dict.fromkeys(notes)))  # pairs may be those of the training file


def regularization_problems(recipe: Recipe, context: MixContext) -> Sequence[Problem]:
    """List the problems of the general rows of a recipe's regularisers."""
    try:
        regularizers.mixtures(recipe.regularize, context)
    except UserError as error:
        return error.problems
    return ()


def find_shipped(task: Task, base: ModelSource, mixture: Mixture) -> Sequence[Answered]:
    """Return the base's answers to a mixture's prompts that ship with the package, if all are there."""
    if not task.chat_template:
        return ()
    return regularizers.find_shipped_answers(digest([base.weights_digest, base.template_digest]), mixture)


def regularization_work(
    recipe: Recipe,
    context: MixContext,
    is_shipped: Callable[[Mixture], object],
    training_work: costs.Work,
    n_rows: tuple[int, int],
) -> costs.Work:
    """Estimate the extra work of regularisers; `n_rows` are the training's rows in total and per step."""
    n_total, n_per_step = n_rows
    factor = regularizers.work_factor(recipe.regularize, n_per_step)
    total = costs.Work(trained=round(training_work.trained * (factor - 1)))
    for name, mixture in regularizers.mixtures(recipe.regularize, context).items():
        share = mixture.n / max(1, n_total)
        n_steps = ceil(training_work.steps * share) if regularizers.mixes_rows(name) else 0
        total += costs.Work(trained=round(training_work.trained * share), steps=n_steps)
        if (limit := mixture.max_new_tokens) and not is_shipped(mixture):
            total += costs.estimate_answering(mixture.rows, ranked=False, max_new_tokens=limit)
    return total
