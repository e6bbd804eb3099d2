"""Weights: which folder they lie in, how they are made, and which base they are served on.

Invariant: a folder is named by everything its weights depend on, and exists only when they are complete.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from harness import plugins
from harness.errors import CandidateFailed, Diverged
from harness.evaluation import addressed, costs
from harness.evaluation.regularization import mixing_work, regularization_digest
from harness.evaluation.session import Session
from harness.models.hub import ModelSource, content_digest, quantized
from harness.plugins import Method
from harness.prompting import PromptingContext, Step, compose
from harness.provenance.code_versions import versions_of
from harness.records import Example, digest, without_defaults
from harness.regularizers import prepare
from harness.spec import Recipe
from harness.store.layout import AGAIN, clear_errors, remove_folder, write_whole
from harness.training import CHECKPOINTS, FitContext, Weights, adapter_digest, model_digest

_DIVERGED, _FIT = "diverged.json", "fit.json"


def source_of(session: Session, recipe: Recipe) -> Recipe:
    """Return the recipe whose weights are used: the named one's, or its own."""
    return session.experiment.candidates[recipe.weights_of] if recipe.weights_of else recipe


def trains(session: Session, recipe: Recipe) -> bool:
    """Tell whether another seed would make other weights."""
    return plugins.method(source_of(session, recipe).method).seeded


def is_served(session: Session, recipe: Recipe) -> bool:
    """Tell whether a recipe's weights lie elsewhere and are asked over HTTP."""
    return plugins.method(source_of(session, recipe).method).makes == "endpoint"


def base_of(session: Session, recipe: Recipe) -> ModelSource:
    """Return the base, as it was published, that a recipe's weights are made from."""
    source = source_of(session, recipe)
    while source.init_from:
        source = session.experiment.candidates[source.init_from]
    return session.sources[source.base_model or session.experiment.base_model]


def served_base(session: Session, recipe: Recipe) -> ModelSource:
    """Return the base as a recipe serves it: quantised where its weights were trained so, or as it says."""
    return quantized(base_of(session, recipe), _served(session, recipe))


def trained_base(session: Session, source: Recipe) -> ModelSource:
    """Return the base as weights are trained on it."""
    return quantized(base_of(session, source), _trained_on(session, source))


def _served(session: Session, recipe: Recipe) -> str:
    source = source_of(session, recipe)
    if wanted := recipe.serve_on or source.serve_on:
        return "" if wanted == "bf16" else wanted
    return _trained_on(session, source)


def _trained_on(session: Session, source: Recipe) -> str:
    """Name the quantisation of the base that weights are trained on."""
    if source.init_from:
        return _served(session, session.experiment.candidates[source.init_from])
    return plugins.method(source.method).quantization


def base_weights(session: Session, source: ModelSource | None = None) -> Weights:
    """Return the own weights of a base, the experiment's where none is named."""
    source = source or session.source
    return Weights("base", source.weights_digest, None, {}, source)


def trials(source: Recipe) -> list[tuple[dict[str, Any], Recipe]]:
    """List the points of a recipe's sweep, each with the recipe it stands for; without one, the recipe."""
    points = [dict(zip(source.sweep, values, strict=True)) for values in product(*source.sweep.values())]
    return [
        (point, source.model_copy(update={"sweep": {}, "params": {**source.params, **point}}))
        for point in points
    ]


def folder_of(session: Session, source: Recipe, seed: int, init: Weights | None) -> Path:
    """Name the folder of weights by everything that they depend on, and nothing else."""
    method = plugins.method(source.method)
    base = trained_base(session, source)
    identity = {
        "method": source.method,
        "code": [plugins.version("methods", source.method), versions_of(*method.loops)],
        "params": method.params(**source.params).model_dump(mode="json", exclude_defaults=True),
        "base": [base.weights_digest, base.template_digest],
        "init": init.digest if init else "",
        "path": content_digest(sorted(Path(source.path).glob("adapter_*"))) if source.path else "",
        "training": _training_digest(session, method, source, seed),
        "regularize": regularization_digest(session, source, seed),
    }
    return session.store.weights(digest({name: value for name, value in identity.items() if value}))


def _training_digest(session: Session, method: Method, source: Recipe, seed: int) -> str:
    """Digest the rows that a method trains on, and how it computes; empty for one that needs none."""
    if not method.draws_from:
        return ""
    target = session.target
    pairs = [without_defaults(pair) for pair in target.items.pairs] if method.draws_from == "pairs" else []
    rows = [] if pairs else [target.versions["train"], target.versions["validation"]]
    drawn = [seed] if method.seeded else []
    computed = [session.machine.precision, session.machine.device]
    return digest([pairs, rows, prompting_digest(session, source, seed), drawn, computed])


def read_weights(session: Session, recipe: Recipe, folder: Path) -> Weights | None:
    """Read finished weights, to be served as the recipe says.

    Raises:
        Diverged: making them ended in a loss that is no number, and would again.
    """
    if (folder / _DIVERGED).exists():
        raise Diverged(*json.loads((folder / _DIVERGED).read_text()))
    if not (folder / _FIT).exists():
        return None
    made = json.loads((folder / _FIT).read_text())
    served = served_base(session, recipe)
    own = made["digest"]
    if made["kind"] == "adapter" and served.weights_digest != made["trained_on"]:
        own = adapter_digest(folder / "adapter", served.weights_digest)
    return Weights(made["kind"], own, folder, made["training"], served)


def refuse_damaged(weights: Weights) -> None:
    """Refuse trained weights whose files are no longer those that were made; others have none to check.

    Raises:
        CandidateFailed: they are not.
    """
    contents = {"adapter": adapter_digest, "model": model_digest}
    if weights.folder is None or weights.kind not in contents:
        return
    try:
        made = json.loads((weights.folder / _FIT).read_text())
        whole = contents[weights.kind](weights.folder / weights.kind, made["trained_on"]) == made["digest"]
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        knob = "delete that folder, and compare makes them again"
        raise CandidateFailed(f"the weights in {weights.folder} are damaged", knob)


def fit(
    session: Session,
    source: Recipe,
    seed: int,
    folder: Path,
    init: Weights | None,
    mixed: Sequence[Example] = (),
) -> None:
    """Make weights in a folder of another name, which gets its own when they are complete.

    `mixed` rows stand beside the training rows, asked as they are. Whatever ends a training, the next
    call goes on from its checkpoints; they are deleted when the weights are complete.

    Raises:
        CandidateFailed: they cannot be made; a training that diverged is remembered.
    """
    if init:
        refuse_damaged(init)
    part = folder.with_name(folder.name + ".part")
    try:
        if not (part / _FIT).exists():  # it is written when all else is there
            _remove_all_but_checkpoints(part)
            with clear_errors(session.store, str(part), AGAIN):
                record = _fitted(session, source, seed, part, init, mixed)
            record["training"] |= {"fit_key": folder.name}
            write_whole(session.store, part / _FIT, json.dumps(record))
    except Diverged as error:
        remove_folder(part)
        write_whole(session.store, folder / _DIVERGED, json.dumps([error.reason, error.knob]))
        raise
    except Exception:
        _remove_all_but_checkpoints(part)
        if not any((part / CHECKPOINTS).glob("*")):
            remove_folder(part)
        raise
    remove_folder(part / CHECKPOINTS)
    part.rename(folder)


def _fitted(
    session: Session,
    source: Recipe,
    seed: int,
    part: Path,
    init: Weights | None,
    mixed: Sequence[Example],
) -> dict[str, Any]:
    """Run the method of a recipe; return what there is to know of the weights it made."""
    method = plugins.method(source.method)
    base = trained_base(session, source)
    step, items = step_of(session, source, seed), session.target.items
    expected_s = session.seconds(fit_work(session, source, seed), base)
    with session.progress.stage(f"training {source.method}, seed {seed}", expected_s) as advance:
        context = FitContext(
            base,
            session.machine,
            part,
            (*map(step, items.train), *mixed),
            tuple(map(step, items.validation)),
            session.target.task.chat_template,
            seed,
            session.experiment.report_to,
            advance,
            tuple(map(step, items.pairs)) if method.draws_from == "pairs" else (),
            init.folder / init.kind if init and init.folder else None,
            Path(source.path) if source.path else None,
            partial(prepare, source.regularize),
        )
        made = method.fit(context, method.params(**source.params))
    training = made.training | ({"n_replayed": len(mixed)} if mixed else {})
    return {
        "kind": made.kind,
        "digest": made.digest,
        "trained_on": base.weights_digest,
        "training": training,
    }


def _remove_all_but_checkpoints(part: Path) -> None:
    """Make the folder of unfinished weights, in which a training that was killed left its checkpoints."""
    part.mkdir(parents=True, exist_ok=True)
    for path in part.iterdir():
        if path.is_file():
            path.unlink()
        elif path.name != CHECKPOINTS:
            shutil.rmtree(path)


def fit_work(session: Session, source: Recipe, seed: int) -> costs.Work:
    """Estimate the tokens one fit trains on; methods without epochs train no language model."""
    method = plugins.method(source.method)
    if not method.trains:
        return costs.Work()
    epochs = method.params(**source.params).num_train_epochs
    items, step = session.target.items, step_of(session, source, seed)
    if method.draws_from == "pairs":
        return costs.preference(list(map(step, items.pairs)), epochs)
    once = costs.training(list(map(step, items.train)), epochs)
    return once + mixing_work(session, source, seed, once)


def step_of(session: Session, recipe: Recipe, seed: int) -> Step:
    """Return what turns an example of the target into what this recipe asks."""
    task, items = session.target.task, session.target.items
    context = PromptingContext(task, items.train, items.documents, seed, session.dry_run)
    prompted = compose(recipe.prompting, context)
    system = recipe.system if recipe.system is not None else task.system
    return lambda example: addressed(prompted(example), system, recipe.template)


def prompting_digest(session: Session, recipe: Recipe, seed: int) -> str:
    """Digest what is put around a question; and what shots and passages are drawn from."""
    promptings = [(name, *_prompting(name, params)) for name, params in recipe.prompting.items()]
    drawn_from = [seed, session.target.versions["train"], session.target.items.documents]
    return digest(
        [
            promptings,
            versions_of("prompting"),
            recipe.system,
            recipe.template,
            drawn_from if set(recipe.prompting) - {"zero_shot"} else [],
        ]
    )


def _prompting(name: str, params: Mapping[str, Any]) -> tuple[int | str, dict[str, Any]]:
    """Return a prompting's code version and parameters, in which a model stands as its content."""
    plugin = plugins.load("prompting", name)
    built = plugin.Params(**params)
    plain: dict[str, Any] = built.model_dump(mode="json", exclude_defaults=True)
    if "model" in plain:
        plain["model"] = plugin.drawn_from(built) or plain["model"]
    return plugins.version("prompting", name), plain
