"""Prompts as an artefact's own template and tokenizer write them, against those of its rows.

Invariant: an artefact is refused, before anything is scored, where a server of it would send its model other
token ids than the run's. Prompts that hold a special token as text are left out, as servers read the token.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness.errors import CandidateFailed, UserError
from harness.evaluation import prompt_text
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.row_sets import RowSet
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.models import artefacts, encode_all, hub, render_chat
from harness.models.chat_templates import special_tokens_of
from harness.records import PromptText
from harness.training import Weights

_N = 50  # prompts of each task
_STEP = "an export with the template and tokenizer of its run: harness export"
_Ids = Sequence[tuple[int, ...]]
_ChatPrompts = tuple[str, list[PromptText]]  # a task that is asked in chat, and its first prompts
_Tokenizer = Any  # of transformers


def refuse_other_prompts(
    session: Session, candidate: ResolvedCandidate, weights: Weights, sets: Iterable[RowSet]
) -> None:
    """Refuse an artefact whose own template and tokenizer write prompts otherwise than they were answered.

    Raises:
        CandidateFailed: it has no template, or gives other token ids; names the first difference.
    """
    base = hub.load_tokenizer(candidate.base)
    asked = [*_list_chat_prompts(sets, special_tokens_of(base))]
    if not asked:
        return
    path = Path(candidate.source.path or "")
    if artefacts.format_of(path) == "gguf":
        own = _encode_as_gguf(session, weights, base, asked)
    else:
        own = _encode_by_files(candidate, path, asked)
    for (task, prompts), ids in zip(asked, own, strict=True):
        wanted = [encoded.context for encoded in encode_all(base, prompts)]
        _refuse_difference(base, task, wanted, ids)


def _list_chat_prompts(sets: Iterable[RowSet], special: Sequence[str]) -> Iterator[_ChatPrompts]:
    for rows in sets:
        task = rows.measured.task
        if rows.split == "test" and task.chat_template and not task.lm_eval and task.kind != "bits_per_byte":
            prompts = [prompt_text(task, e) for e in rows.job().examples[:_N]]
            plain = [
                one
                for one in prompts
                if not any(token in m["content"] for m in one.messages for token in special)
            ]
            yield task.name, plain


def _encode_by_files(
    candidate: ResolvedCandidate, path: Path, asked: Sequence[_ChatPrompts]
) -> Sequence[_Ids]:
    """Encode prompts by the tokenizer beside an ONNX file, or in a whole model's folder."""
    folder = artefacts.find_tokenizer_folder(path)
    source = candidate.base._replace(path=folder, switches="", template="")
    tokenizer = hub.load_tokenizer(source)
    tokenizer.chat_template = hub.chat_template(source) or None  # as others read it
    try:
        return [[one.context for one in encode_all(tokenizer, prompts)] for _, prompts in asked]
    except UserError as error:
        raise CandidateFailed(f"{folder}: {error.problems[0].found}", _STEP) from None


def _encode_as_gguf(
    session: Session, weights: Weights, base: _Tokenizer, asked: Sequence[_ChatPrompts]
) -> Sequence[_Ids]:
    """Encode prompts by the template and tokenizer in a GGUF file, as llama.cpp's server does."""
    with open_weights(session, weights) as model:
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
        for _, prompts in asked:
            texts = [render_chat(own, one.messages).text for one in prompts]
            # The server writes the token itself, and takes away the template's.
            texts = [text.removeprefix(begins) if begins else text for text in texts]
            encoded.append(model.tokenize(texts))
        return encoded


def _refuse_difference(base: _Tokenizer, task: str, wanted: _Ids, own: _Ids) -> None:
    for number, (run, artefact) in enumerate(zip(wanted, own, strict=True), start=1):
        if run == artefact:
            continue
        place = next(i for i, (a, b) in enumerate(zip_longest(run, artefact)) if a != b)
        there, here = (_show(base, ids[place : place + 1]) for ids in (artefact, run))
        found = f"{task}, prompt {number}, token {place + 1}: {there} by its own template and tokenizer"
        raise CandidateFailed(f"{found}, and {here} in the run", _STEP)


def _show(base: _Tokenizer, ids: Sequence[int]) -> str:
    return f"{ids[0]} ({base.decode(list(ids))!r})" if ids else "nothing"
