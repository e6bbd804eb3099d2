"""Answers of a teacher, asked once each and on the disk before the next are asked.

Invariant: a book holds the answers of one teacher under one set of limits; an answer is found by what was
asked and its seed, so whatever ends the asking loses at most the prompts under way, and none is paid twice.

    runs/teachers/<book>/identity.json    whose answers they are, and how they were drawn
    runs/teachers/<book>/answers.jsonl    an answer a line, in the order in which they came
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from harness import store
from harness.errors import CandidateFailed
from harness.evaluation import costs
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.formatting import count
from harness.models.hf import Candidate
from harness.provenance.code_versions import versions_of
from harness.records import Example, Limits, Output, digest
from harness.spec import TokenPrices
from harness.store import Store
from harness.training import Weights

_TOGETHER = 16  # prompts that a model here is asked, and whose answers are kept, together

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """Answer of a teacher to one prompt; `key` digests what was asked, with its seed."""

    key: str
    text: str
    finish_reason: str
    n_prompt_tokens: int
    n_output_tokens: int
    compute_s: float


class Prompt(NamedTuple):
    """Prompt to a teacher, and the seed of the answer; no seed where nothing is drawn."""

    example: Example
    seed: int | None = None

    @property
    def key(self) -> str:
        """What an answer is found by."""
        return digest([list(self.example.messages), self.seed])


class Spent(NamedTuple):
    """Tokens and time that answers took, and what they cost in USD; None where nobody knows."""

    n_prompt_tokens: int
    n_output_tokens: int
    compute_s: float
    cost_usd: float | None


class Teacher(NamedTuple):
    """Candidate that answers under limits, the book its answers lie in, and who it is."""

    candidate: ResolvedCandidate
    limits: Limits
    identity: dict[str, Any]

    @property
    def book(self) -> str:
        """The digest that names the folder of its answers."""
        return digest(self.identity)


def make_teacher(session: Session, candidate: ResolvedCandidate, weights: Weights, limits: Limits) -> Teacher:
    """Return a candidate with its weights as a teacher."""
    here = [session.machine.precision, session.machine.device, versions_of("tokenization", "layout")]
    identity = {
        "weights": weights.digest,
        "template": candidate.base.template_digest,
        "chat": session.target.task.chat_template,
        "limits": list(limits),
        "computed": [] if candidate.is_remote else here,
    }
    return Teacher(candidate, limits, identity)


def known_answers(at: Store, teacher: Teacher) -> dict[str, TeacherAnswer]:
    """Map the keys of prompts that a teacher has answered to its answers."""
    file = at.folder / "teachers" / teacher.book / "answers.jsonl"
    return {answer.key: answer for answer in store.read_records(TeacherAnswer, file)}


def ask_teacher(
    session: Session, teacher: Teacher, weights: Weights, prompts: Sequence[Prompt], max_cost: float | None
) -> tuple[dict[str, TeacherAnswer], dict[str, str]]:
    """Return the answers to prompts by their keys, asked for where they are not there, and failures' reasons.

    Raises:
        CandidateFailed: the teacher cannot be asked, or all answers have cost what is allowed; those that
            came are kept.
    """
    known, failed = known_answers(session.store, teacher), dict[str, str]()
    keys = {prompt.key for prompt in prompts}
    new = list({p.key: p for p in prompts if p.key not in known}.values())
    if not new:
        return known, failed
    label, lock = f"{count(len(new))} answers of {teacher.candidate.name}", Lock()
    chat, remote = session.target.task.chat_template, teacher.candidate.is_remote
    with open_weights(session, weights) as model, session.progress.stage(label) as advance:
        asked = [(p, model.encode(p.example.messages, chat_template=chat).context) for p in new]

        def ask(part: Sequence[tuple[Prompt, tuple[int, ...]]]) -> None:
            with lock:
                paid = [answer for key, answer in known.items() if key in keys]
                _refuse_beyond(session, teacher, paid, max_cost)
            said = list(_generate(model, teacher.limits, part))
            came = [_answer(p.key, output) for p, output in said if output and not _reason(output)]
            with lock:
                _keep(session.store, teacher, came)
                known.update({answer.key: answer for answer in came})
                failed.update({p.key: _reason(output) for p, output in said if _reason(output)})
                advance(len(keys & known.keys()) + len(failed), len(keys))

        size = 1 if remote else _TOGETHER
        parts = [asked[at : at + size] for at in range(0, len(asked), size)]
        _each(ask, parts, teacher.candidate.source.params.get("num_concurrent", 8) if remote else 1)
    return known, failed


def _each(ask: Callable[[_Part], None], parts: Sequence[_Part], n_at_once: int) -> None:
    """Ask about parts, some at once; after one that fails nothing begins, and what is under way is kept.

    Raises:
        CandidateFailed: as the first that failed.
    """
    failures: list[CandidateFailed] = []

    def ask_on(part: _Part) -> None:
        try:
            if not failures:
                ask(part)
        except CandidateFailed as error:
            failures.append(error)

    with ThreadPoolExecutor(n_at_once) as pool:
        list(pool.map(ask_on, parts))
    if failures:
        raise failures[0]


def _generate(
    model: Candidate, limits: Limits, part: Sequence[tuple[Prompt, tuple[int, ...]]]
) -> Iterator[tuple[Prompt, Output | None]]:
    """Yield each prompt with its answer, None where it is too long."""
    fits = [len(ids) + limits.max_new_tokens <= model.max_context for _, ids in part]
    given = [one for one, fit in zip(part, fits, strict=True) if fit]
    seeds = [p.seed for p, _ in given if p.seed is not None]
    outputs = iter(model.generate([ids for _, ids in given], limits, seeds) if given else ())
    for (prompt, _), fit in zip(part, fits, strict=True):
        yield prompt, next(outputs) if fit else None


def _reason(output: Output | None) -> str:
    """Say why there is no answer; empty where there is one."""
    if output is None:
        return "a prompt longer than the teacher's context"
    return f"the teacher failed ({output.error})" if output.finish_reason == "error" else ""


def _answer(key: str, output: Output) -> TeacherAnswer:
    tokens = (output.n_prompt_tokens, output.n_output_tokens)
    return TeacherAnswer(key, output.text, output.finish_reason, *tokens, output.compute_s)


def _keep(at: Store, teacher: Teacher, answers: Sequence[TeacherAnswer]) -> None:
    folder = at.folder / "teachers" / teacher.book
    if not (folder / "identity.json").exists():
        store.write_record(at, folder / "identity.json", teacher.identity)
    store.append_records(at, folder / "answers.jsonl", answers)


def prices_of(session: Session, candidate: ResolvedCandidate) -> TokenPrices | None:
    """Return what an endpoint's provider asks; None of a model that runs here, and where nobody says."""
    if not candidate.is_remote:
        return None
    own = candidate.source.params.get("usd_per_million_tokens")
    policy = session.experiment.decide.usd_per_million_tokens
    return TokenPrices.model_validate(own) if own else policy


def spent_on(session: Session, teacher: Teacher, answers: Iterable[TeacherAnswer]) -> Spent:
    """Add up what answers took: of an endpoint by its tokens, else by the time of this device."""
    found = list({answer.key: answer for answer in answers}.values())
    read, written = sum(a.n_prompt_tokens for a in found), sum(a.n_output_tokens for a in found)
    compute_s = sum(a.compute_s for a in found)
    if not teacher.candidate.is_remote:
        hour = session.experiment.decide.device_hour_usd
        usd = costs.price_usd(compute_s, session.machine.device, hour)
        return Spent(read, written, compute_s, usd)
    prices = prices_of(session, teacher.candidate)
    counted = prices is not None and all(a.n_prompt_tokens for a in found)
    cost = costs.request_usd(costs.Tokens(read, 0, written), prices) if counted and prices else None
    return Spent(read, written, compute_s, cost)


def _refuse_beyond(
    session: Session, teacher: Teacher, answers: Sequence[TeacherAnswer], max_cost: float | None
) -> None:
    """Refuse to ask on where all answers so far have cost what is allowed, or nobody knows what.

    Raises:
        CandidateFailed: they have.
    """
    if max_cost is None or not answers:
        return
    cost, n = spent_on(session, teacher, answers).cost_usd, count(len(answers))
    if cost is None:
        found = f"answers without usage, so what they cost is unknown, and --max-cost is {max_cost:g}"
        raise CandidateFailed(found, "no --max-cost, or a server that counts tokens")
    if cost >= max_cost:
        found = f"{n} answers have cost {cost:.2f} USD, and --max-cost is {max_cost:g}"
        raise CandidateFailed(found, "a larger --max-cost; the answers so far are kept")
