"""Overlap of the target's training rows with all that is evaluated: exact rows refused, others noted.

Invariant: items of every suite and documents of every lm-eval task are looked at as the target's own are; a
row that repeats one is refused, a row that may ask the same in other words is named and stays.
"""

from collections.abc import Mapping
from dataclasses import replace

from harness.data import PartName, SourcedExample, TaskItems, suite_contamination
from harness.data.columns import option_text
from harness.data.edit import OutputNames
from harness.data.overlap import Encode, ReadBy, overlap_notes
from harness.data.readers import display_path
from harness.errors import refuse
from harness.evaluation import lm_eval
from harness.spec import Fields, Task

_PARTS: tuple[PartName, ...] = ("train", "pairs")


def refuse_or_note(
    target: Task,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, lm_eval.LmEvalTask],
    files: Mapping[PartName, str] | None = None,
    encode: Encode | None = None,
) -> TaskItems:
    """Return the target's items with a note of the training rows that may be evaluated in other words.

    `files` names those that the training rows or pairs come from, by default the target's own. With `encode`
    what is close by its embeddings is noted as well.

    Raises:
        UserError: a training row or pair has the prompt of an item of a suite or of lm-eval.
    """
    own = items[target.name]
    if own.folds:
        return _refuse_or_note_in_folds(target, items, catalogue, encode)
    others = {name: found.test for name, found in items.items() if name != target.name}
    others |= {name: listed.texts for name, listed in catalogue.items()}
    refuse(suite_contamination([*own.list_sourced("train"), *own.list_sourced("pairs")], others))
    evaluated = [*own.list_sourced("validation"), *own.list_sourced("test")]
    for name, found in items.items():
        evaluated += found.list_sourced("test") if name != target.name else []
    for name, listed in catalogue.items():
        evaluated += [SourcedExample(example, f"{name} document {example.id}") for example in listed.texts]
    notes: list[str] = []
    names: OutputNames = {}
    named = files or {part: display_path(target.data.source(part) or "") for part in _PARTS}
    for part, file in named.items():
        drawn_from = display_path(target.data.source("train") or "")
        choice = target.kind == "choice"
        read_by = _read_by(target.fields)
        rows = own.list_sourced(part)
        notes += overlap_notes(rows, evaluated, file, choice, encode, drawn_from, read_by, names)
    return replace(own, overlap=tuple(dict.fromkeys(notes)))  # pairs may be those of the training file


def _read_by(fields: Fields) -> ReadBy:
    default = Fields()
    group = option_text(fields.cluster or "", "")
    prompt, reference = (
        option_text(getattr(fields, of), getattr(default, of)) for of in ("prompt", "reference")
    )
    return ReadBy(prompt, reference, None if group and "{" in group else group)


def _refuse_or_note_in_folds(
    target: Task,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, lm_eval.LmEvalTask],
    encode: Encode | None,
) -> TaskItems:
    """Look at all rows beside what no fold tests, and in each fold at what it trains on beside its own."""
    own, name = items[target.name], target.name
    whole = {**items, name: own.without_test()}
    notes = list(refuse_or_note(target, whole, catalogue, encode=encode).overlap)
    for fold in range(1, max(own.folds.values()) + 1):
        held = replace(own.in_fold(fold), validation=())
        found = refuse_or_note(target, {name: held}, {}, encode=encode).overlap
        notes += (f"fold {fold}: {note}" for note in found)
    return replace(own, overlap=tuple(notes))
