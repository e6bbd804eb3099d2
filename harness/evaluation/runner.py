"""Evaluation of missing blocks by opened weights, and checks of weights that leave harness.

Invariant: each block is stored before the next is evaluated, and a stored block is never evaluated again; a
kill loses at most the running one. A block's token ids do not depend on the thread that encodes them. Each
opener releases what it opened and leaves the base in memory unchanged. Weights are hashed again before they
are exported, served or scored. An artefact whose server would send other token ids than the run's is refused;
prompts with a special token as text are left out.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from harness import provenance, store
from harness.config import is_shipped
from harness.data import suite_contamination
from harness.errors import CandidateFailed, Problem, UserError, gather, refuse
from harness.evaluation import EvaluationJob, prompt_text
from harness.evaluation.candidates import ResolvedCandidate, refuse_damaged
from harness.evaluation.control_arm import measure_control, origin
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import RowSet, work_of
from harness.evaluation.session import MeasuredTask, Session
from harness.formatting import count, pluralize
from harness.models import (
    Candidate,
    artefacts,
    classifier,
    common_length,
    encode_all,
    hub,
    openai_api,
    render_chat,
)
from harness.models.chat_templates import special_tokens_of
from harness.models.deltas import apply_delta
from harness.models.hardware import Load, cpu_kernels, load
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import ModelSource, refuse_changed_files
from harness.models.out_of_memory import HALVED, halvings
from harness.records import PromptText, Run
from harness.spec import DATA_FILES, Experiment, Fields
from harness.training import EMBEDDING, HEAD, Weights, open_embedding, open_head


def fill(
    session: Session,
    candidate: Candidate,
    sets: Sequence[RowSet],
    name: str,
    *,
    control: str = "",
    shared: bool = False,
) -> None:
    """Compute the missing blocks of sets; with `shared` complete sets are cached for other experiments."""
    for row_set in sets:
        rows = row_set.ungraded  # `score_answered` grades them later
        with session.claim(rows.identity.digest):
            if not rows.is_there(session.store):
                job, block_origin = rows.job(), origin(session.store, session.machine.name, control)
                done_blocks = store.list_stored_blocks(session.store, job.identity, rows.ids)
                work, loads = work_of(job), list[Load]()
                missing_blocks = [index for index in range(job.n_blocks) if index not in done_blocks]
                encode = partial(rows.measured.encode, candidate, job)
                encode_ahead = session.machine.device != "cpu" or openai_api.is_endpoint(candidate.engine)
                with session.progress.stage(f"{name}: {rows.name}", session.seconds(work)) as advance:
                    start = fill_start = load()
                    n_halved = 0
                    for index, encoded in encode_blocks(encode, missing_blocks, ahead=encode_ahead):
                        n_earlier = len(halvings)
                        # `evaluate_block` of `evaluation/__init__.py`, or lm-eval's: answers and scores
                        block = rows.measured.evaluate(candidate, job, index, encoded)
                        loads.append(load().since(start))
                        # A worker's times count as disturbed by the other workers.
                        is_disturbed = session.is_worker or loads[-1].is_contended()
                        is_halved = len(halvings) > n_earlier
                        n_halved += is_halved
                        timed_origin = block_origin._replace(contended=is_disturbed, halved=is_halved)
                        store.keep_origin(session.store, job.identity.digest, index, timed_origin)
                        store.append_block(session.store, job.identity, index, block)
                        advance(index + 1, job.n_blocks)
                        start = load()
                store.complete_rows(session.store, job.identity, len(rows.ids))
                if n_halved:
                    blocks = f"{count(n_halved)} of {pluralize(job.n_blocks, 'block')}"
                    session.progress.show(name, f"{name}: {rows.name}: {HALVED} ({blocks})")
                if source := session.base_in_memory(job.identity.engine):
                    teaches = not (done_blocks or session.is_worker or any(t.is_contended() for t in loads))
                    took_s = load().since(fill_start).wall_s
                    session.learn_pace("answering", work, took_s, source, teaches=teaches)
        is_halved = any(o.halved for o in store.origins(session.store, row_set.identity.digest).values())
        targets = session.target, *session.training.values()
        if shared and not is_halved and _is_shared(row_set.measured, targets):
            environment = provenance.describe_environment(session.machine.name)
            store.keep_base_rows(session.store, row_set.identity, environment, cpu_kernels())


def find_base_rows(session: Session, sets: Iterable[RowSet]) -> list[RowSet]:
    """Fetch a base's cached rows of suites from other experiments; return the sets without cached rows."""
    environment = provenance.describe_environment(session.machine.name)
    targets = session.target, *session.training.values()
    return [
        rows
        for rows in sets
        if not _is_shared(rows.measured, targets)
        or not store.find_base_rows(session.store, rows.identity, rows.ids, environment, cpu_kernels())
    ]


def _is_shared(m: MeasuredTask, targets: Iterable[MeasuredTask]) -> bool:
    """Tell whether rows may be cached outside their folder: those of public suites, never of a target."""
    task = m.task
    if m.judged or m.role not in ("capability", "safety"):
        return False
    if not task.lm_eval:  # shipped rows without the user's own words
        files = [Path(path) for part in DATA_FILES if (path := getattr(task.data, part))]
        if not files or not all(map(is_shipped, files)) or task.system is not None or task.fields != Fields():
            return False
    parts = ((*t.items.train, *t.items.validation, *t.items.test, *t.items.pairs) for t in targets)
    target_examples = [example for part in parts for example in part]
    items = [*m.items.train, *m.items.test]
    # lm-eval numbers the items of each task from 0.
    same_id = not task.lm_eval and not {e.id for e in items}.isdisjoint(e.id for e in target_examples)
    return not same_id and not suite_contamination(target_examples, {task.name: items})


@contextmanager
def open_weights(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open weights as a candidate that generates and scores; CandidateFailed if their files have changed."""
    refuse_damaged(weights)
    start = load()
    with _open(session, weights) as candidate:
        session.learn_load("opened", Work(opened=1), load().since(start), candidate.engine)
        yield candidate


def answer(
    session: Session, weights: Weights, sets: Sequence[RowSet], name: str, base: ModelSource | None = None
) -> None:
    """Open weights and let them answer sets, after measuring the control arm of `base`."""
    control = measure_control(session, base) if base and sets and weights.is_language_model else ""
    with open_weights(session, weights) as candidate:
        fill(session, candidate, sets, name, control=control)


def count_shared_tokens(candidate: Candidate, job: EvaluationJob) -> int:
    """Count the leading tokens shared by all prompts, which a provider could cache; 0 for a chat endpoint."""
    if candidate.engine == openai_api.identity("chat")[0]:
        return 0
    chat = job.task.chat_template
    prompts = [PromptText(e.messages, chat_template=chat) for e in job.examples]
    return common_length([encoded.context for encoded in candidate.encode_all(prompts)])


_Ids = TypeVar("_Ids")


def encode_blocks(
    encode: Callable[[int], _Ids], blocks: Sequence[int], *, ahead: bool
) -> Iterator[tuple[int, _Ids]]:
    """Yield each block's number with its token ids; `ahead` encodes the next one in a thread meanwhile."""
    if not ahead:
        yield from ((block, encode(block)) for block in blocks)
        return
    with ThreadPoolExecutor(1, "tokens") as pool:
        ids = [encode(block) for block in blocks[:1]]
        for block, next_block in zip_longest(blocks, blocks[1:]):
            pending = None if next_block is None else pool.submit(encode, next_block)
            yield block, ids.pop()
            if pending is not None:
                ids.append(pending.result())


_HERE = ("base", "model", "adapter", "delta", "artefact", "classifier", HEAD, EMBEDDING)
KINDS = (*_HERE, *openai_api.PROTOCOLS)


@contextmanager
def _open(session: Session, weights: Weights) -> Iterator[Candidate]:
    kind, digest, source = weights.kind, weights.digest, weights.source or session.source
    if kind == "base":
        yield session.host(source).base
        return
    assert weights.folder is not None, f"weights of the kind {kind} are in a folder"
    folder = weights.folder
    if kind == "model":  # in place of the base
        yield session.host(source._replace(path=folder / "model", weights_digest=digest)).base
    elif kind == "adapter":
        host, options = session.host(source), {"merged": True} if weights.merged else {}
        with host.use_adapter(folder / "adapter", digest, **options) as candidate:  # no other engine merges
            yield candidate
    elif kind == "delta":
        host = session.host(source)
        assert isinstance(host, ModelHost), "deltas are refused for other engines"
        with apply_delta(host.model, folder / "delta"):
            engine = host.base.engine.partition("/")[2]
            yield HFCandidate(host.model, host.tokenizer, digest, engine, host.costs)
    elif kind == "artefact":  # in a worker, without a base in memory
        session.unload()
        log = session.store.folder / ".artefacts" / f"{digest[:8]}-{os.getpid()}.log"
        path = artefacts.read_path(folder)
        with artefacts.open_artefact(path, digest, source, log, session.gguf_command) as candidate:
            yield candidate
    elif kind == "classifier":
        yield classifier(folder, digest)
    elif kind in (HEAD, EMBEDDING):
        opener = open_head if kind == HEAD else open_embedding
        yield opener(folder / kind, source, session.machine, digest)
    else:
        assert kind in openai_api.PROTOCOLS, f"no way to open weights of the kind {kind}"
        settings = openai_api.settings_of(folder)
        step = "a candidate that answers here or in your network, or remove sensitive_data"
        refuse(sensitive_problems(session.experiment, settings, "an endpoint", "decide.needs", step))
        with openai_api.open_endpoint(settings, digest, source) as candidate:
            yield candidate


def sensitive_problems(
    experiment: Experiment, settings: openai_api.Settings, name: str, where: str, step: str
) -> Iterator[Problem]:
    """Yield a problem if rows are sensitive and the endpoint is an external server."""
    if "sensitive_data" in experiment.decide.needs and settings.leaves_machine:
        found = f"{name} on an external server, {settings.name}"
        expected = "sensitive data to stay here, as decide.needs: [sensitive_data] says"
        yield Problem(where, found, expected, step)


_AGAIN = "harness compare makes the weights again where their folder was deleted"


def verify_weights(at: store.Store, base: ModelSource, weights: Weights, run: Run) -> None:
    """Hash the files of a run's weights and base again; UserError names each that differs from the run's."""
    source = weights.source or base
    problems: list[Problem] = []
    with gather(problems):
        refuse_changed_files(source)
    try:
        refuse_damaged(weights)
    except CandidateFailed as error:
        expected = "the weights that were trained"
        problems.append(Problem(str(weights.folder), error.reason, expected, error.knob))
    if weights.digest != run.weights_digest:
        found, expected = f"weights with the digest {weights.digest}", f"{run.weights_digest}, the run's"
        problems.append(Problem(run.run_id, found, expected, _AGAIN))
    if source.weights_digest not in (run.base_digest, run.served_digest, run.weights_digest):
        found, expected = f"a base with the digest {source.weights_digest}", f"{run.base_digest}, the run's"
        problems.append(Problem(run.run_id, found, expected, "name the base_model that it was trained on"))
    for champion in store.kept_champions(at.folder.parent):
        if champion.run_id != run.run_id or not champion.files:
            continue
        now = store.hash_weights(at, champion.fit_key)
        for name in sorted({*champion.files, *now}):
            if now.get(name) != champion.files.get(name):
                change = "missing" if name not in now else "changed" if name in champion.files else "new"
                where = str(at.weights(champion.fit_key) / name)
                found = f"a file that is {change} since its promotion"
                problems.append(Problem(where, found, "the files that were promoted", _AGAIN))
    refuse(problems)


_N = 50  # prompts compared of each chat task
_STEP = "an export with the template and tokenizer of its run: harness export"


def refuse_other_prompts(
    opened: AbstractContextManager[Candidate], candidate: ResolvedCandidate, sets: Iterable[RowSet]
) -> None:
    """Raise CandidateFailed if an artefact's template or tokenizer gives other token ids than the run's."""
    base = hub.load_tokenizer(candidate.base)
    special = special_tokens_of(base)
    prompts_by_task: dict[str, list[PromptText]] = {}
    for rows in sets:
        task = rows.measured.task
        if rows.split == "test" and task.chat_template and not task.lm_eval and task.kind != "bits_per_byte":
            prompts = [prompt_text(task, e) for e in rows.job().examples[:_N]]
            prompts_by_task[task.name] = [
                prompt
                for prompt in prompts
                if not any(token in turn["content"] for turn in prompt.messages for token in special)
            ]
    if not prompts_by_task:
        return
    path, encoded = Path(candidate.source.path or ""), list[Sequence[tuple[int, ...]]]()
    if artefacts.format_of(path) == "gguf":
        with opened as model:
            assert isinstance(model, artefacts.ArtefactCandidate)
            tokenizer, metadata = copy(base), model.metadata
            tokenizer.chat_template = metadata[artefacts.TEMPLATE]
            if not tokenizer.chat_template:
                raise CandidateFailed(f"{model.worker.file} without a chat template", _STEP)
            for name, key in (("bos_token", artefacts.BOS), ("eos_token", artefacts.EOS)):
                if metadata[key].isdecimal():
                    setattr(tokenizer, name, base.convert_ids_to_tokens(int(metadata[key])))
            # The server adds this token itself and removes the template's.
            bos_token = (metadata[artefacts.ADDS_BOS] == "true" and tokenizer.bos_token) or ""
            for prompts in prompts_by_task.values():
                texts = [render_chat(tokenizer, prompt.messages).text for prompt in prompts]
                encoded.append(model.tokenize([text.removeprefix(bos_token) for text in texts]))
    else:  # by the tokenizer next to an ONNX file, or in a whole model's folder
        folder = artefacts.find_tokenizer_folder(path)
        source = candidate.base._replace(path=folder, switches="", template="")
        tokenizer = hub.load_tokenizer(source)
        tokenizer.chat_template = hub.chat_template(source) or None  # as other programs read it
        try:
            encoded += ([e.context for e in encode_all(tokenizer, p)] for p in prompts_by_task.values())
        except UserError as error:
            raise CandidateFailed(f"{folder}: {error.problems[0].found}", _STEP) from None
    for (name, prompts), ids in zip(prompts_by_task.items(), encoded, strict=True):
        pairs = zip((e.context for e in encode_all(base, prompts)), ids, strict=True)
        for number, (run, artefact) in enumerate(pairs, start=1):
            if run != artefact:
                at = next(i for i, (a, b) in enumerate(zip_longest(run, artefact)) if a != b)
                its_text, run_text = (
                    f"{token} ({base.decode([token])!r})" if token is not None else "nothing"
                    for token in (next(iter(tokens[at : at + 1]), None) for tokens in (artefact, run))
                )
                where = f"{name}, prompt {number}, token {at + 1}"
                found = f"{where}: {its_text} by its own template and tokenizer, and {run_text} in the run"
                raise CandidateFailed(found, _STEP)
