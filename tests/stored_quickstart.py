"""The store of a finished quickstart, made without its model in a minute.

Invariant: files, items, metrics, row sets and identities are the quickstart's own, so that a later command
finds everything stored; only answers are made up, from the item's text and the weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import fake_adapter

from harness import config, experiment
from harness.evaluation.session import Session
from harness.experiment import Scope, prepare_session
from harness.experiment.candidate_weights import Fit, ensure_weights
from harness.models import Candidate
from harness.models.hub import ModelSource
from harness.progress import SilentProgress
from harness.records import Encoded, Likelihood, Limits, Output, PromptText, digest
from harness.report import ExperimentReport

ROOT = Path(__file__).parents[1]
TRAINED = ("lora-careless", "lora")
_RIGHT = 0.6  # share of answers
_MOVED = 0.15  # share of answers that differ between two sets of weights


def write(folder: Path) -> ExperimentReport:
    """Write the quickstart's harness.yaml, and the runs that `harness compare` leaves."""
    # The embedded model is opened once if the cache does not yet know which engine reads it.
    path = folder / "harness.yaml"
    path.write_text((ROOT / "harness.yaml").read_text())
    (folder / "suites").symlink_to(ROOT / "suites")
    loaded = config.load(path)
    session = prepare_session(loaded, Scope(), SilentProgress())
    for source in session.sources.values():
        session.engine(source)
    session.unload()
    answered = ChanceSession(**vars(session))
    for name in TRAINED:
        _lay_down(answered, name)
    return experiment.run_all(answered, loaded)


class ChanceSession(Session):
    """A session whose bases and adapters answer by chance."""

    def host(self, source: ModelSource) -> "Host":
        measured = (self.target, *self.suites)
        right_answers = {e.prompt: e.references[0] for m in measured for e in m.items.test if e.references}
        return Host(source, right_answers)


class Host:
    """A host of a base, without a model."""

    def __init__(self, source: ModelSource, right_answers: Mapping[str, str]) -> None:
        self.source, self._known = source, right_answers
        self.base = ChanceCandidate(right_answers, source.weights_digest)

    @contextmanager
    def use_adapter(self, folder: Path, weights_digest: str) -> Iterator["ChanceCandidate"]:
        yield ChanceCandidate(self._known, weights_digest)


class ChanceCandidate(Candidate):
    """A candidate that gives the right answer by chance; a prompt's ids are its bytes."""

    engine = "text"
    layout_digest = digest("text")
    max_context = 1 << 30

    def __init__(self, right_answers: Mapping[str, str], weights_digest: str) -> None:
        self._known, self.weights_digest = right_answers, weights_digest

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        texts = [prompt.messages[-1]["content"] if prompt.messages else "" for prompt in prompts]
        return [
            Encoded(tuple(text.encode()), tuple(prompt.continuation.encode()))
            for text, prompt in zip(texts, prompts, strict=True)
        ]

    def generate(self, prompts: Sequence[tuple[int, ...]], limits: Limits) -> list[Output]:
        return [self._answer(bytes(prompt).decode()) for prompt in prompts]

    def loglikelihood(self, pairs: Sequence) -> list[Likelihood]:
        return [Likelihood(-len(c) * (1 + self._draw(bytes(p) + bytes(c))), False) for p, c in pairs]

    def _answer(self, prompt: str) -> Output:
        right = self._draw(prompt.encode()) < _RIGHT
        question = prompt.rpartition("\n\n")[2]  # passages come before it
        text = self._known.get(prompt) or self._known.get(question) or "nothing"
        text = text if right else f"not {text}"
        return Output(text, n_prompt_tokens=len(prompt) // 4, n_output_tokens=len(text) // 4, compute_s=0.01)

    def _draw(self, text: bytes) -> float:
        """Draw from the text, and for some texts from the weights as well."""
        share = _share(self.weights_digest.encode() + text)
        return share / _MOVED if share < _MOVED else _share(text)


def _share(text: bytes) -> float:
    return int.from_bytes(sha256(text).digest()[:6]) / 2**48


def _lay_down(session: Session, name: str) -> None:
    """Write what a finished training leaves, without tensors."""
    candidate = session.candidates[name]
    init = ensure_weights(session, candidate.init, 0) if candidate.init else None
    folder = Fit(session, candidate, 0).folder(init)
    steps = [[i, 2.0 / i] for i in range(1, 81)]
    training = {"wall_s": 50.0, "loss": steps, "validation_loss": [[80, 0.5]], "tokens_per_s": 500.0}
    training |= {"fit_key": folder.name, **({"n_pairs": len(session.target.items.pairs)} if init else {})}
    served = candidate.trained_base.weights_digest
    fake_adapter.lay_down(folder, served, {"name": name}, training)
