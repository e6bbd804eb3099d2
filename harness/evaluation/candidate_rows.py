"""Rows that each candidate trains on: the target's, or of other files, or mixed.

Invariant: whatever is trained on, the same test items are evaluated, and no row repeats one of them or an
item of a suite; rows equal to the target's make the same weights.

Overlap of the target's training rows with all that is evaluated: exact rows refused, others noted.

Invariant: items of every suite and documents of every lm-eval task are looked at as the target's own are; a
row that repeats one is refused, a row that may ask the same in other words is named and stays.

Regularisers of a recipe in an experiment: their digest, problems, cost and what they sample from.

Invariant: nothing here evaluates a model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness import plugins
from harness.data import PartName, SourcedExample, TaskItems, suite_contamination
from harness.data.columns import option_text
from harness.data.edit import OutputNames, is_taught, n_rows_of, payments_for, take_share, total_usd
from harness.data.overlap import Encode, ReadBy, overlap_notes
from harness.data.readers import display_path, file_of
from harness.data.training_rows import load_training_rows
from harness.errors import CandidateFailed, Problem, UserError, refuse
from harness.evaluation import costs, lm_eval
from harness.evaluation.candidates import ResolvedCandidate, add_lineage
from harness.evaluation.session import Fold, MeasuredTask, Session, join_items
from harness.formatting import count, percent
from harness.models.hub import ModelSource
from harness.records import digest
from harness.regularizers import Answered, MixContext, Mixture, find_shipped_answers, mixtures, work_factor
from harness.spec import Experiment, Fields, Recipe, Task


def digest_training_rows(recipe: Recipe) -> str:
    """Digest what a recipe says of its training rows; empty where they are the target's."""
    if not (recipe.train or recipe.mix):
        return ""
    mix = recipe.mix.model_dump(mode="json") if recipe.mix else None
    return digest([plugins.method(recipe.method).draws_from, recipe.train, mix])


def training_data(session: Session, recipe: Recipe) -> MeasuredTask:
    """Return the target with the rows that a recipe trains on.

    Raises:
        CandidateFailed: it is no candidate of the file, and its rows were not read.
    """
    key = digest_training_rows(recipe)
    if key and key not in session.training:
        raise CandidateFailed("its training rows were not read", "name its train: or mix: in harness.yaml")
    return session.training[key] if key else session.target


def read_training_rows(
    experiment: Experiment,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, lm_eval.LmEvalTask],
    n_pairs: int | None = None,
    encode: Encode | None = None,
) -> dict[str, MeasuredTask]:
    """Read the rows of every candidate that does not train on the target's own, by their keys.

    At most `n_pairs` preference pairs of each file are kept. With `encode` contamination is looked for by
    embeddings as well.

    Raises:
        UserError: with the problems of all candidates at once.
    """
    out: dict[str, MeasuredTask] = {}
    problems: list[Problem] = []
    for recipe in experiment.candidates.values():
        key = digest_training_rows(recipe)
        if not key or key in out or recipe.method not in plugins.names("methods"):
            continue
        try:
            found = _read(experiment, recipe, items, catalogue, n_pairs, encode)
        except UserError as error:
            problems += error.problems
        else:
            out[key] = join_items(experiment.target, "target", experiment.target.name, found)
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return out


def read_folds(
    experiment: Experiment,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, lm_eval.LmEvalTask],
    n_pairs: int | None = None,
) -> tuple[Fold, ...]:
    """Return the folds of the target with the rows of every candidate in each; none where it has none.

    Raises:
        UserError: with the problems of all candidates at once.
    """
    target, own = experiment.target, items[experiment.target.name]
    out = []
    for fold in range(1, max(own.folds.values(), default=0) + 1):
        held = own.in_fold(fold)
        training = read_training_rows(experiment, {**items, target.name: held}, catalogue, n_pairs)
        out.append(Fold(join_items(target, "target", target.name, held), training))
    return tuple(out)


def _read(
    experiment: Experiment,
    recipe: Recipe,
    items: Mapping[str, TaskItems],
    catalogue: Mapping[str, lm_eval.LmEvalTask],
    n_pairs: int | None,
    encode: Encode | None,
) -> TaskItems:
    target, seed = experiment.target, experiment.seeds[0]
    own, pairs = items[target.name], plugins.method(recipe.method).draws_from == "pairs"
    own = own.without_test() if own.folds else own  # what is shipped trains on every row
    own = load_training_rows(target, own, recipe.train, recipe.mix, seed, pairs=pairs)
    own = replace(own, pairs=own.pairs[:n_pairs])
    files: dict[PartName, str] = {"pairs" if pairs else "train": " and ".join(_files(recipe))}
    return refuse_or_note(target, {**items, target.name: own}, catalogue, files, encode)


def describe_training_rows(session: Session, selected: Iterable[str]) -> list[str]:
    """Say of each candidate with rows of its own what they are, how they were read, and what was left out.

    It is said of the selected ones and of those that they take weights from. In folds also which candidates
    may have been trained on what they are tested on.
    """
    needed = add_lineage(selected, session.candidates)
    candidates = {name: one for name, one in session.candidates.items() if name in needed}
    said: dict[str, list[str]] = {}
    for name, candidate in candidates.items():
        recipe = candidate.source
        if name != candidate.source_name or not digest_training_rows(recipe):
            continue
        notes = training_data(session, recipe).items.notes
        for note in (f"trains on {describe_rows(session, recipe)}", *notes):
            said.setdefault(note, []).append(name)
    if session.folds and (made := [n for n, c in candidates.items() if c.method.made_elsewhere]):
        said["made elsewhere; whatever it was trained on of the target's rows, the folds test it on too"] = (
            made
        )
    return [f"{', '.join(names)}: {note}" for note, names in said.items()]


def describe_rows(session: Session, recipe: Recipe) -> str:
    """Name the files and the number of rows; of a mixture the shares drawn.

    Empty of the target's rows.
    """
    if not digest_training_rows(recipe):
        return ""
    part: PartName = "pairs" if plugins.method(recipe.method).draws_from == "pairs" else "train"
    rows = training_data(session, recipe).items.list_sourced(part)
    source = describe_source(recipe)
    if recipe.mix:
        drawn = Counter(file_of(row.where) for row in rows)
        source = " + ".join(f"{percent(drawn[file] / len(rows))} % {file}" for file in _files(recipe))
    kind = "pairs" if part == "pairs" else "rows"
    return f"{source}: {count(len(rows))} {kind}"


def describe_source(recipe: Recipe) -> str:
    """Name where a recipe's training rows come from, with the shares that a mixture asks for."""
    weights = recipe.mix.weights if recipe.mix else None
    if recipe.mix and weights:
        named = zip(_files(recipe), weights, strict=True)
        return " + ".join(f"{percent(share)} % {file}" for file, share in named)
    hot = f" at temperature {recipe.mix.temperature:g}" if recipe.mix and recipe.mix.temperature else ""
    return f"{' + '.join(_files(recipe))}{hot}" or "the target's rows"


def rows_cost_usd(session: Session, candidate: ResolvedCandidate) -> float:
    """Add up in USD what a teacher was paid for the rows of a candidate, and of those it comes from.

    Files that came of the same rows cost once; a mixture costs as much of a file as it drew of its rows.

    Raises:
        UserError: the manifest beside a file cannot be read.
    """
    lineage = candidate.lineage.values()
    used = {
        (file, _share_drawn(session, recipe, file)): None
        for recipe in lineage
        for file in row_files(session, recipe)
    }
    return total_usd(one for file, share in used for one in take_share(payments_for(file), share))


def _share_drawn(session: Session, recipe: Recipe, file: str) -> float:
    """Return the share of a file's rows that a mixture drew; 1 of a file that is read whole."""
    if not recipe.mix or not (n := n_rows_of(file)):
        return 1.0
    items, shown = training_data(session, recipe).items, display_path(file)
    is_pairs = plugins.method(recipe.method).draws_from == "pairs"
    places = {row.where for row in items.list_sourced("pairs" if is_pairs else "train")}
    return sum(file_of(where) == shown for where in places) / n


def n_rows(session: Session, recipe: Recipe) -> int:
    """Count the rows that were labelled for a recipe: each once, however often a mixture drew it."""
    return len(_label_rows(session, recipe)) if recipe.train or recipe.mix else _n_trained(session, recipe)


def n_drawn_again(session: Session, recipe: Recipe) -> int:
    """Count how often a recipe trains on a row that it trains on already, as a mixture draws it again."""
    return _n_trained(session, recipe) - n_rows(session, recipe)


def n_taught_rows(session: Session, recipe: Recipe) -> int:
    """Count the labelled rows whose label is a teacher's, as the manifests beside their files say.

    Raises:
        UserError: the manifest beside a file cannot be read.
    """
    taught = {display_path(file) for file in row_files(session, recipe) if is_taught(file)}
    return sum(file_of(where) in taught for where, _ in _label_rows(session, recipe)) if taught else 0


def _n_trained(session: Session, recipe: Recipe) -> int:
    return len(training_data(session, recipe).items.train)


def _label_rows(session: Session, recipe: Recipe) -> set[tuple[str, str]]:
    """Return place and content of the training rows; a conversation may have several answers in one place."""
    rows = training_data(session, recipe).items.list_sourced("train")
    return {(of.where, digest([of.example.messages, of.example.references])) for of in rows}


def row_files(session: Session, recipe: Recipe) -> tuple[str, ...]:
    """List the files that a recipe's training rows or pairs come from; none where it reads none."""
    part = plugins.method(recipe.method).draws_from
    own = session.target.task.data.source(part) if part else None
    return _paths(recipe) or ((own,) if own else ())


def _paths(recipe: Recipe) -> tuple[str, ...]:
    return recipe.mix.paths if recipe.mix else recipe.train


def _files(recipe: Recipe) -> list[str]:
    return [display_path(path) for path in _paths(recipe)]


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


def mix_context(session: Session, source: Recipe, seed: int) -> MixContext:
    """Return what rows are sampled from: nothing that a target or a suite evaluates may be among them."""
    own = training_data(session, source).items
    evaluated = {session.target.task.name: (*own.test, *own.validation)}
    evaluated |= {m.task.name: (*m.items.test, *m.items.validation) for m in session.more_targets}
    evaluated |= {m.task.name: m.items.test for m in session.suites}
    return MixContext(len(own.train), seed, evaluated)


def regularization_problems(session: Session, recipe: Recipe) -> Sequence[Problem]:
    """List what is wrong with the general rows of a recipe's regularisers."""
    try:
        mixtures(recipe.regularize, mix_context(session, recipe, session.first_seed))
    except UserError as error:
        return error.problems
    return ()


def find_shipped(session: Session, base: ModelSource, mixture: Mixture) -> Sequence[Answered]:
    """Return the base's answers to a mixture's prompts that come with the package, if it has them all."""
    if not session.target.task.chat_template:
        return ()
    return find_shipped_answers(digest([base.weights_digest, base.template_digest]), mixture)


def regularization_work(
    session: Session, source: Recipe, seed: int, plain: costs.Work, n_rows: tuple[int, int]
) -> costs.Work:
    """Estimate what regularisers add to a training of so many rows, in all and in a step.

    That is rows beside the training rows or read by penalties, further passes, and the base's answers.
    """
    of_all, of_a_step = n_rows
    base = session.sources.get(source.base_model or "", session.source)
    total = costs.Work(trained=round(plain.trained * (work_factor(source.regularize, of_a_step) - 1)))
    for mixture in mixtures(source.regularize, mix_context(session, source, seed)).values():
        total += costs.Work(trained=round(plain.trained * mixture.n / max(1, of_all)))
        if mixture.max_new_tokens and not find_shipped(session, base, mixture):
            total += costs.estimate_answering(
                mixture.rows, ranked=False, max_new_tokens=mixture.max_new_tokens
            )
    return total
