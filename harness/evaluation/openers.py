"""Openers of weights, one per kind: from a folder and a base to a candidate that generates and scores.

Invariant: an opener releases what it opened, and the base in memory is unchanged afterwards. A new kind of
weights needs a new entry in `OPENERS`. Rows that `decide.needs` calls sensitive are not sent to external
servers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from harness.errors import Problem, refuse
from harness.evaluation.session import Session
from harness.models import Candidate, classifier, openai_api
from harness.models.deltas import apply_delta
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import ModelSource
from harness.spec import Experiment
from harness.training import EMBEDDING, HEAD, Weights, open_embedding, open_head

Opener = Callable[[Session, Weights], AbstractContextManager[Candidate]]


@contextmanager
def open_base(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open the base as served."""
    yield session.host(_source(session, weights)).base


@contextmanager
def open_model(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open a trained whole model, in place of the base."""
    path = _folder(weights) / "model"
    yield session.host(_source(session, weights)._replace(path=path, weights_digest=weights.digest)).base


@contextmanager
def open_adapter(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open the base with an adapter, merged if requested."""
    host, folder = session.host(_source(session, weights)), _folder(weights) / "adapter"
    if weights.merged:
        assert isinstance(host, ModelHost), "serve_merged is refused for other engines"
        with host.use_adapter(folder, weights.digest, merged=True) as candidate:
            yield candidate
        return
    with host.use_adapter(folder, weights.digest) as opened:
        yield opened


@contextmanager
def open_delta(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open the base with a delta in our own format."""
    host = session.host(_source(session, weights))
    assert isinstance(host, ModelHost), "deltas are refused for other engines"
    with apply_delta(host.model, _folder(weights) / "delta"):
        engine = host.base.engine.partition("/")[2]
        yield HFCandidate(host.model, host.tokenizer, weights.digest, engine, host.costs)


@contextmanager
def open_classifier(_: Session, weights: Weights) -> Iterator[Candidate]:
    """Open a text classifier, which needs no base."""
    yield classifier(_folder(weights), weights.digest)


@contextmanager
def open_text_head(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open a classification head, or a classifier of embeddings, with its own model for reading."""
    opens = {HEAD: open_head, EMBEDDING: open_embedding}[weights.kind]
    folder = _folder(weights) / weights.kind
    yield opens(folder, _source(session, weights), session.machine, weights.digest)


@contextmanager
def open_endpoint(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open the model behind an endpoint; prompts are written as for the base.

    Raises:
        UserError: the rows are sensitive, and the server is external.
    """
    source, settings = _source(session, weights), openai_api.settings_of(_folder(weights))
    step = "a candidate that answers here or in your network, or remove sensitive_data"
    told = (settings, "an endpoint", "decide.needs", step)
    refuse(sensitive_problems(session.experiment, *told))
    with openai_api.open_endpoint(settings, weights.digest, source) as candidate:
        yield candidate


OPENERS: Mapping[str, Opener] = {
    "base": open_base,
    "model": open_model,
    "adapter": open_adapter,
    "delta": open_delta,
    "classifier": open_classifier,
    HEAD: open_text_head,
    EMBEDDING: open_text_head,
    **dict.fromkeys(openai_api.PROTOCOLS, open_endpoint),
}


def _source(session: Session, weights: Weights) -> ModelSource:
    return weights.source or session.source


def _folder(weights: Weights) -> Path:
    assert weights.folder is not None, f"weights of the kind {weights.kind} lie in a folder"
    return weights.folder


def sensitive_problems(
    experiment: Experiment, settings: openai_api.Settings, name: str, where: str, step: str
) -> Iterator[Problem]:
    """Yield why rows must not be sent to an endpoint: sensitive data, and an external server."""
    if "sensitive_data" in experiment.decide.needs and settings.leaves_machine:
        found = f"{name} on an external server, {settings.name}"
        expected = "sensitive data to stay here, as decide.needs: [sensitive_data] says"
        yield Problem(where, found, expected, step)
