"""Checks of weights before they are exported, served or scored: files are hashed, prompts written twice.

Invariant: a remembered checksum counts only if it is the file's own today. An artefact is refused if its
server would send other token ids than the run's; prompts with a special token as text are left out.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from copy import copy
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness import store
from harness.errors import CandidateFailed, Problem, UserError, gather, refuse
from harness.evaluation import prompt_text
from harness.evaluation.candidates import ResolvedCandidate, refuse_damaged
from harness.evaluation.row_sets import RowSet
from harness.models import Candidate, artefacts, encode_all, hub, render_chat
from harness.models.chat_templates import special_tokens_of
from harness.models.hub import ModelSource, refuse_changed_files
from harness.records import PromptText, Run
from harness.training import Weights

_AGAIN = "harness compare makes the weights again where their folder was deleted"


def verify_weights(at: store.Store, base: ModelSource, weights: Weights, run: Run) -> None:
    """Hash the files of a run's weights and base anew; UserError names each that differs from the run's."""
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
        step = "name the base_model that it was trained on"
        problems.append(Problem(run.run_id, found, expected, step))
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


_N = 50  # prompts of each task that is asked in chat
_STEP = "an export with the template and tokenizer of its run: harness export"


def refuse_other_prompts(
    opened: AbstractContextManager[Candidate], candidate: ResolvedCandidate, sets: Iterable[RowSet]
) -> None:
    """Raise CandidateFailed if an artefact's template or tokenizer gives other token ids than the run's."""
    base = hub.load_tokenizer(candidate.base)
    special = special_tokens_of(base)
    asked: dict[str, list[PromptText]] = {}
    for rows in sets:
        task = rows.measured.task
        if rows.split == "test" and task.chat_template and not task.lm_eval and task.kind != "bits_per_byte":
            prompts = [prompt_text(task, e) for e in rows.job().examples[:_N]]
            texts = [[m["content"] for m in prompt.messages] for prompt in prompts]
            plain = [not any(token in text for text in each for token in special) for each in texts]
            asked[task.name] = [prompt for prompt, kept in zip(prompts, plain, strict=True) if kept]
    if not asked:
        return
    path = Path(candidate.source.path or "")
    if artefacts.format_of(path) == "gguf":
        with opened as model:
            encoded = _encode_as_gguf(model, base, asked.values())
    else:  # by the tokenizer next to an ONNX file, or in a whole model's folder
        folder = artefacts.find_tokenizer_folder(path)
        source = candidate.base._replace(path=folder, switches="", template="")
        tokenizer = hub.load_tokenizer(source)
        tokenizer.chat_template = hub.chat_template(source) or None  # as others read it
        try:
            encoded = [[one.context for one in encode_all(tokenizer, p)] for p in asked.values()]
        except UserError as error:
            raise CandidateFailed(f"{folder}: {error.problems[0].found}", _STEP) from None
    for (name, prompts), ids in zip(asked.items(), encoded, strict=True):
        pairs = zip((one.context for one in encode_all(base, prompts)), ids, strict=True)
        for number, (run, artefact) in enumerate(pairs, start=1):
            if run != artefact:
                place = next(i for i, (a, b) in enumerate(zip_longest(run, artefact)) if a != b)
                own, of_run = (
                    f"{token} ({base.decode([token])!r})" if token is not None else "nothing"
                    for token in (next(iter(tokens[place : place + 1]), None) for tokens in (artefact, run))
                )
                where = f"{name}, prompt {number}, token {place + 1}"
                found = f"{where}: {own} by its own template and tokenizer, and {of_run} in the run"
                raise CandidateFailed(found, _STEP)


def _encode_as_gguf(
    model: Candidate, base: Any, asked: Iterable[Sequence[PromptText]]
) -> Sequence[Sequence[tuple[int, ...]]]:
    """Encode prompts by the template and tokenizer in a GGUF file, as llama.cpp's server does."""
    assert isinstance(model, artefacts.ArtefactCandidate)
    template = model.metadata[artefacts.TEMPLATE]
    if not template:
        raise CandidateFailed(f"{model.worker.file} without a chat template", _STEP)
    own = copy(base)
    own.chat_template = template
    for name, key in (("bos_token", artefacts.BOS), ("eos_token", artefacts.EOS)):
        if model.metadata[key].isdecimal():
            setattr(own, name, base.convert_ids_to_tokens(int(model.metadata[key])))
    begins = model.metadata[artefacts.ADDS_BOS] == "true" and own.bos_token
    encoded = []
    for prompts in asked:
        texts = [render_chat(own, one.messages).text for one in prompts]
        # The server writes the token itself, and takes away the template's.
        texts = [text.removeprefix(begins) if begins else text for text in texts]
        encoded.append(model.tokenize(texts))
    return encoded
