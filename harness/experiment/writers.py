"""Writers: candidates and endpoints that write rows, within a budget.

    answers/<digest of the writer>.jsonl    one answer per line, in order of arrival; in the runs folder of an
                                            experiment, otherwise in the cache

Invariant: an answer is written to disk before it is used, so an interruption loses at most running requests,
and each prompt is sent once. Failures are not stored, and no request starts after one. Rows with an evaluated
question are refused before rows are written.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from harness.cache import cache_dir
from harness.data import PartName, SourcedExample, contamination, find_contaminated_rows, splits
from harness.data.edit.changes import EditedRow
from harness.data.edit.save import Edit
from harness.data.text_files import display_path
from harness.errors import CandidateFailed, UserError, refuse
from harness.evaluation import costs
from harness.evaluation.candidate_rows import refuse_or_note
from harness.evaluation.candidates import refuse_silent
from harness.evaluation.costs import Budget
from harness.evaluation.runner import open_weights
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.candidate_problems import key_problems
from harness.experiment.candidate_weights import ensure_weights, find_stored_weights
from harness.formatting import count, pluralize, usd
from harness.models import Candidate
from harness.models.openai_api import ChatCandidate, Server, Settings
from harness.progress import Progress
from harness.provenance import versions_of
from harness.records import Example, Limits, Message, Output, PromptText, canonical_json, digest, parse_json
from harness.store import Store, append_lines, read_lines


class Writer(NamedTuple):
    """Model that writes: name, identity, folder of its answers, and the function that opens it.

    `price` returns the cost of answers in USD, `planned` the cost of reading and writing numbers of tokens;
    None if unknown. `num_concurrent` is the number of concurrent requests, None for a local model.
    """

    name: str
    identity: Mapping[str, Any]
    folder: Path
    opened: Callable[[], AbstractContextManager[Candidate]]
    price: Callable[[Sequence[Output]], float | None]
    planned: Callable[[float, float], float | None]
    chat: bool = True
    num_concurrent: int | None = None
    weights_digest: str = ""


def candidate_writer(session: Session, name: str, max_cost: float | None) -> Writer:
    """Return a candidate of an experiment as a writer; make missing weights.

    Raises UserError if it generates no text, cannot be reached, or has no prices for a budget.
    """
    candidate, seed = session.candidates[name], session.first_seed
    refuse_silent(candidate)
    where = f"candidate {candidate.name}"
    if not candidate.method.makes_language_model:
        found = f"the method {candidate.source.method}, which generates no text"
        raise UserError(where, found, "a candidate that generates its answers", "name another")
    refuse(key_problems(session.experiment, [(where, candidate)]))
    folder, chat = session.store.folder / "answers", session.target.task.chat_template

    @contextmanager
    def open_candidate() -> Iterator[Candidate]:
        with open_weights(session, ensure_weights(session, candidate, seed)) as model:
            yield model

    if candidate.is_remote:
        settings = Settings(**candidate.source.params)
        prices = settings.usd_per_million_tokens or session.experiment.decide.usd_per_million_tokens
        settings = settings.model_copy(update={"usd_per_million_tokens": prices})
        writer = endpoint_writer(settings, candidate.name, folder)
        if settings.protocol != "chat":
            how = {"protocol": settings.protocol, "template": candidate.base.template_digest, "chat": chat}
            writer = writer._replace(identity={**writer.identity, **how}, opened=open_candidate, chat=chat)
            writer = writer._replace(weights_digest=settings.weights_digest)
        if max_cost is not None and writer.planned(1, 1) is None:
            found = f"{name}, an endpoint without prices"
            step = "usd_per_million_tokens: {input: …, output: …} among its params"
            raise UserError("--max-cost", found, "prices to hold it against", step)
        return writer
    machine, stored = session.machine, find_stored_weights(session, candidate, seed)
    if stored is None and session.dry_run:
        found, step = "no weights yet", f"harness train {name}"
        raise UserError(f"candidate {name}", found, "weights to count with", step)
    weights = stored or ensure_weights(session, candidate, seed)
    base, hour = candidate.served_base, session.experiment.decide.device_hour_usd
    engine, layout = session.engine(base)
    identity = {
        "weights": weights.digest,
        "template": base.template_digest,
        "chat": chat,
        "engine": engine,
        "layout": layout,
        "precision": machine.precision,
        "device": machine.device,
        "code": versions_of("tokenization", "layout"),
    }

    def price(outputs: Sequence[Output]) -> float:
        return costs.price_usd(sum(output.compute_s for output in outputs), machine.device, hour)

    def estimate_usd(read: float, generated: float) -> float:
        seconds = session.seconds(costs.Work(round(read), round(generated)), base)
        return costs.price_usd(seconds, machine.device, hour)

    functions = open_candidate, price, estimate_usd
    return Writer(name, identity, folder, *functions, chat, weights_digest=weights.digest)


def endpoint_writer(settings: Settings, name: str = "", folder: Path | None = None) -> Writer:
    """Return an endpoint as a writer by the chat protocol; without a folder its answers are in the cache."""
    prices, by_chat = settings.usd_per_million_tokens, settings.model_copy(update={"protocol": "chat"})

    @contextmanager
    def open_candidate() -> Iterator[Candidate]:
        server = Server(by_chat)
        try:
            yield ChatCandidate(server, digest(by_chat.name))
        finally:
            server.api.close()

    def price(outputs: Sequence[Output]) -> float | None:
        if prices is None or not all(output.n_prompt_tokens for output in outputs):
            return None
        return sum(costs.tokens_usd(prices, o.n_prompt_tokens, o.n_output_tokens) for o in outputs)

    def estimate_usd(read: float, generated: float) -> float | None:
        return None if prices is None else costs.tokens_usd(prices, read, generated)

    return Writer(
        name or by_chat.name,
        {"base_url": by_chat.base_url, "model": by_chat.model, "protocol": "chat"},
        folder or cache_dir() / "answers",
        open_candidate,
        price,
        estimate_usd,
        num_concurrent=by_chat.num_concurrent,
        weights_digest=by_chat.weights_digest,
    )


def write_question(example: Example) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a new row: its id and question, and its cluster and slice."""
    is_prompt = len(example.messages) == 1 and example.messages[0]["role"] == "user"
    row: dict[str, Any] = {"id": example.id}
    row |= {"prompt": example.prompt} if is_prompt else {"messages": list(example.messages)}
    groups = {"cluster": example.cluster} if example.cluster not in ("", example.id) else {}
    return row, groups | ({"slice": example.slice} if example.slice else {})


def draw_prompts(rows: Sequence[SourcedExample], n: int | None, seed: int) -> list[SourcedExample]:
    """Sample at most n rows whose prompts are sent, in the order of the file."""
    ids = {example.id for example in splits.draw(rows, n, random.Random(f"{seed}/prompts"))}
    return [row for row in rows if row.example.id in ids]


def list_evaluated(tasks: Sequence[MeasuredTask]) -> list[SourcedExample]:
    """List the evaluated rows of all tasks; the first task is the target."""
    target_rows = [row for rows in tasks[0].items.evaluated.values() for row in rows]
    return target_rows + [row for m in tasks[1:] for row in m.items.list_sourced("test")]


def check_contamination(
    tasks: Sequence[MeasuredTask], rows: Sequence[SourcedExample], part: PartName, file: str
) -> tuple[str, ...]:
    """Compare the rows' questions with all evaluated ones; return notes on reworded matches.

    The first task is the target; `file` is the existing or future file of the rows. Raises UserError if a row
    has an evaluated question.
    """
    items, task = tasks[0].items, tasks[0].task
    evaluated = [row for split_rows in items.evaluated.values() for row in split_rows]
    shown_file = display_path(file)
    if contaminated := find_contaminated_rows(rows, evaluated, task.kind == "choice"):
        raise UserError(contamination.problems(contaminated, shown_file, "leave the row out"))
    examples = tuple(row.example for row in rows)
    places = {**items.places, **{f"{part}/{row.example.id}": row.where for row in rows}}
    train, pairs = (examples, ()) if part == "train" else ((), examples)
    checked_items = replace(items, train=train, pairs=pairs, places=places)
    other_items = {m.task.name: m.items for m in tasks[1:]}
    return refuse_or_note(task, {**other_items, task.name: checked_items}, {}, {part: shown_file}).overlap


def record_contamination(tasks: Sequence[MeasuredTask], notes: Sequence[str]) -> dict[str, Any]:
    """Record in a manifest what the contamination check compared, and its notes."""
    return {"evaluated": len(list_evaluated(tasks)), "contaminated": 0, "in_other_words": list(notes)}


class PromptRequest(NamedTuple):
    """A prompt with its decoding limits, and the seed if its answer is sampled."""

    messages: tuple[Message, ...]
    limits: Limits
    seed: int | None

    @property
    def key(self) -> str:
        """The digest that names its answer."""
        limits = self.limits
        decoding = [limits.max_new_tokens, list(limits.stop), limits.temperature, limits.top_p]
        return digest([list(self.messages), decoding, self.seed])


class AnswerBook:
    """Stored answers of one model; `identity` holds all that they depend on besides the prompt."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.known = folder / f"{digest(dict(identity))}.jsonl", dict[str, Output]()
        with suppress(OSError):
            for line in read_lines(self.path):
                with suppress(ValueError, TypeError):
                    key, *fields = parse_json(line)
                    self.known.setdefault(key, Output(*fields))

    def keep(self, answers: Mapping[str, Output]) -> dict[str, Output]:
        """Append answers by the keys of their prompts, except failed ones; return the appended answers.

        Raises HarnessError if the disk is full; earlier answers stay.
        """
        fresh, lines = {key: answer for key, answer in answers.items() if answer.finish_reason != "error"}, ""
        for key, answer in fresh.items():
            counted = answer.n_prompt_tokens, answer.n_output_tokens, answer.compute_s
            lines += f"{canonical_json([key, answer.text, answer.finish_reason, *counted])}\n"
        self.known |= fresh
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_lines(Store(self.path.parent), self.path, lines)
        return fresh


_TOGETHER = 16  # prompts that a local model answers, and that are stored, together
TOO_LONG = "a prompt longer than the context"  # reason of a failed answer


class WriterUsage(NamedTuple):
    """Tokens, time, and cost of answers in USD (None if unknown)."""

    n_prompt_tokens: int
    n_output_tokens: int
    compute_s: float
    cost_usd: float | None


class WriterPlan(NamedTuple):
    """Upper bounds of requests, tokens to read and write, and USD (None if unknown); `known` are stored."""

    requests: int
    known: int
    read: int
    generated: int
    cost_usd: float | None

    def __str__(self) -> str:
        """Render as one line."""
        stored_text = f", {count(self.known)} of them answered before" if self.known else ""
        requests = f"{pluralize(self.requests, 'request')}{stored_text}: some {count(self.read)} tokens read"
        priced = "at no known price" if self.cost_usd is None else f"at most {usd(self.cost_usd)} USD"
        return f"{requests}, at most {count(self.generated)} written, {priced}"


class MadeRows(NamedTuple):
    """Rows that a model or people wrote: the edit to save, the outcome of each row, and remarks."""

    edit: Edit
    outcomes: list[EditedRow]
    notes: tuple[str, ...] = ()
    spent: WriterUsage | None = None


_Made = TypeVar("_Made")


class PreparedRequests(NamedTuple, Generic[_Made]):
    """Requests counted before they are sent, and the function that sends them and returns the result.

    `send` raises CandidateFailed if the writer fails or costs too much, UserError if there is no result.
    """

    plan: WriterPlan
    send: Callable[[], _Made]


def plan_requests(writer: Writer, requests: Sequence[PromptRequest]) -> WriterPlan:
    """Estimate requests, tokens and cost before anything is sent."""
    book, each = AnswerBook(writer.folder, writer.identity), {request.key: request for request in requests}
    new = [request for key, request in each.items() if key not in book.known]
    read, generated = sum(map(n_read, new)), sum(request.limits.max_new_tokens for request in new)
    return WriterPlan(len(each), len(each) - len(new), read, generated, writer.planned(read, generated))


def n_read(request: PromptRequest) -> int:
    """Estimate the tokens of a prompt."""
    return sum(costs.tokens(message["content"]) + costs.CHAT_TOKENS for message in request.messages)


def sum_usage(writer: Writer, outputs: Sequence[Output]) -> WriterUsage:
    """Add up the tokens, time and cost of answers."""
    read, written = sum(o.n_prompt_tokens for o in outputs), sum(o.n_output_tokens for o in outputs)
    return WriterUsage(read, written, sum(o.compute_s for o in outputs), writer.price(outputs))


class BudgetedWriter:
    """Writer with a budget of `max_cost` USD over all steps, including stored answers.

    A local model answers `together` prompts at a time.
    """

    def __init__(
        self, writer: Writer, max_cost: float | None, progress: Progress, together: int = _TOGETHER
    ) -> None:
        self._writer, self._max_cost, self._progress, self._together = writer, max_cost, progress, together
        self._book, self._lock = AnswerBook(writer.folder, writer.identity), Lock()
        self._paid: dict[str, Output] = {}

    @property
    def usage(self) -> WriterUsage:
        """Tokens, time and cost of the answers so far, including stored ones."""
        return sum_usage(self._writer, list(self._paid.values()))

    def answers(self, requests: Sequence[PromptRequest], label: str) -> list[Output]:
        """Return the answer to each prompt, including failed ones.

        Raises CandidateFailed if the writer fails, or the budget is too small; received answers are kept.
        """
        by_key = {request.key: request for request in requests}
        answers = {key: self._book.known[key] for key in by_key if key in self._book.known}
        self._paid |= answers
        if lacking := [request for key, request in by_key.items() if key not in answers]:
            self._request(lacking, answers, label)
        return [answers[request.key] for request in requests]

    def _request(self, lacking: Sequence[PromptRequest], answers: dict[str, Output], label: str) -> None:
        n, failures, writer = self._writer.num_concurrent, list[CandidateFailed](), self._writer
        budget, paid = None, list(self._paid.values())
        if self._max_cost is not None:
            estimate = lambda *n: writer.planned(*n) or 0.0  # noqa: E731 (a closure over the writer)
            budget = Budget(self._max_cost, estimate, writer.price(paid), len(paid))
        n_known, size = len(answers), self._together if n is None else 1
        parts = [lacking[at : at + size] for at in range(0, len(lacking), size)]
        with self._writer.opened() as model, self._progress.stage(label) as advance:

            def request(part: Sequence[PromptRequest]) -> None:
                try:
                    if failures:
                        return
                    tokens = sum(map(n_read, part)), sum(prompt.limits.max_new_tokens for prompt in part)
                    with budget.reserve(*tokens) if budget else nullcontext() as spend:
                        outputs = dict(zip([p.key for p in part], self._generate(model, part), strict=True))
                        with self._lock:
                            kept_answers = self._book.keep(outputs)
                            answers.update(outputs)
                            advance(len(answers) - n_known, len(lacking))
                        self._paid |= kept_answers
                        if spend and kept_answers:
                            usage = sum_usage(writer, list(kept_answers.values()))
                            spend(usage.cost_usd, usage.n_prompt_tokens, usage.n_output_tokens)
                except CandidateFailed as error:
                    failures.append(error)

            with ThreadPoolExecutor(n or 1) as pool:
                list(pool.map(request, parts))
        if failures:
            raise failures[0]

    def _generate(self, model: Candidate, part: Sequence[PromptRequest]) -> list[Output]:
        limits = part[0].limits
        texts = [PromptText(request.messages, chat_template=self._writer.chat) for request in part]
        prompts = [encoded.context for encoded in model.encode_all(texts)]
        fits = [len(prompt) + limits.max_new_tokens <= model.max_context for prompt in prompts]
        sent = [request for request, fit in zip(part, fits, strict=True) if fit]
        seeds = [request.seed for request in sent if request.seed is not None]
        fitting = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        outputs = iter(model.generate(fitting, limits, seeds) if fitting else ())
        return [
            next(outputs) if fit else Output("", "error", len(p), error=TOO_LONG)
            for p, fit in zip(prompts, fits, strict=True)
        ]
