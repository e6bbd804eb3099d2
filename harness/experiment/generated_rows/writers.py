"""Writers: candidates and endpoints that write rows, and checks that they may, and of contamination.

Invariant: the same writer is asked in the same way whatever it writes, so an answer is found again by whoever
asks for it. Whoever answers generates text and may be asked now; a contaminated row is refused before rows
are written.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.cache import cache_dir
from harness.data import PartName, SourcedExample, contamination, find_contaminated_rows
from harness.data.text_files import display_path
from harness.errors import Problem, UserError, refuse
from harness.evaluation import costs
from harness.evaluation.candidate_rows import refuse_or_note
from harness.evaluation.candidates import ResolvedCandidate, refuse_silent
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.experiment.preparation.candidate_problems import key_problems
from harness.experiment.weights.candidate_weights import ensure_weights, find_stored_weights
from harness.models import Candidate
from harness.models.openai_api import ChatCandidate, Server, Settings
from harness.provenance import versions_of
from harness.records import Output, digest
from harness.spec import TokenPrices


class Writer(NamedTuple):
    """Model that writes: its name, all that its answers depend on, where they are kept, how it is opened.

    `price` is what answers cost together in USD, `planned` what reading and writing so many tokens would;
    None where nobody knows. `chat` says that messages are written by a chat template. So many requests are
    under way at once (`num_concurrent`); None of a model that runs here.
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


def candidate_writer(session: Session, name: str) -> Writer:
    """Return a candidate of an experiment as a writer; its weights are made where none are stored.

    Raises:
        UserError: it generates no text, or cannot be asked.
    """
    candidate, seed = session.candidates[name], session.first_seed
    refuse_without_text(session, candidate)
    if candidate.is_remote:
        return _remote_writer(session, candidate)
    machine, stored = session.machine, find_stored_weights(session, candidate, seed)
    if stored is None and session.dry_run:
        found, step = "no weights yet", f"harness train {name}"
        raise UserError(Problem(f"candidate {name}", found, "weights to count with", step))
    weights = stored or ensure_weights(session, candidate, seed)
    base, hour = candidate.served_base, session.experiment.decide.device_hour_usd
    engine, layout = session.engine(base)
    chat = session.target.task.chat_template
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
        return costs.price_usd(sum(one.compute_s for one in outputs), machine.device, hour)

    def estimate_usd(read: float, generated: float) -> float:
        seconds = session.seconds(costs.Work(round(read), round(generated)), base)
        return costs.price_usd(seconds, machine.device, hour)

    folder, digest_of = session.store.folder / "answers", weights.digest
    open_candidate = lambda: open_weights(session, weights)  # noqa: E731 (a closure over what was made)
    return Writer(name, identity, folder, open_candidate, price, estimate_usd, chat, weights_digest=digest_of)


def _remote_writer(session: Session, candidate: ResolvedCandidate) -> Writer:
    """Return a candidate behind an address, asked as its recipe says: by chat, or by its base's template."""
    settings = Settings(**candidate.source.params)
    prices = settings.usd_per_million_tokens or session.experiment.decide.usd_per_million_tokens
    settings = settings.model_copy(update={"usd_per_million_tokens": prices})
    writer = endpoint_writer(settings, candidate.name, session.store.folder / "answers")
    if settings.protocol == "chat":
        return writer
    chat = session.target.task.chat_template
    template = {"template": candidate.base.template_digest, "chat": chat}

    @contextmanager
    def open_candidate() -> Iterator[Candidate]:
        weights = ensure_weights(session, candidate, session.first_seed)
        with open_weights(session, weights) as model:
            yield model

    identity = {**writer.identity, "protocol": settings.protocol, **template}
    return writer._replace(
        identity=identity, opened=open_candidate, chat=chat, weights_digest=settings.weights_digest
    )


def endpoint_writer(settings: Settings, name: str = "", folder: Path | None = None) -> Writer:
    """Return an endpoint as a writer, asked by chat; without a folder its answers lie in the cache."""
    prices, by_chat = settings.usd_per_million_tokens, settings.model_copy(update={"protocol": "chat"})

    @contextmanager
    def open_candidate() -> Iterator[Candidate]:
        server = Server(by_chat)
        try:
            yield ChatCandidate(server, digest(by_chat.name))
        finally:
            server.api.close()

    def price(outputs: Sequence[Output]) -> float | None:
        if prices is None or not all(one.n_prompt_tokens for one in outputs):
            return None
        return sum(_usd(one.n_prompt_tokens, one.n_output_tokens, prices) for one in outputs)

    def estimate_usd(read: float, generated: float) -> float | None:
        return None if prices is None else _usd(read, generated, prices)

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


def _usd(read: float, written: float, prices: TokenPrices) -> float:
    return costs.request_usd(costs.TokenCounts(read, 0, written), prices)


def refuse_without_text(session: Session, candidate: ResolvedCandidate) -> None:
    """Refuse a candidate that generates no text, or cannot be asked now."""
    refuse_silent(candidate)
    where = f"candidate {candidate.name}"
    if not candidate.method.makes_language_model:
        found = f"the method {candidate.source.method}, which generates no text"
        raise UserError(Problem(where, found, "a candidate that generates its answers", "name another"))
    refuse(key_problems(session, {candidate.name: where}))


def refuse_unpriced(candidate: ResolvedCandidate, price: float | None, max_cost: float | None) -> None:
    """Refuse a budget that nothing could be held against; `price` is that of a request."""
    if max_cost is not None and price is None:
        found = f"{candidate.name}, an endpoint without prices"
        step = "usd_per_million_tokens: {input: …, output: …} among its params"
        raise UserError(Problem("--max-cost", found, "prices to hold it against", step))


def check_contamination(
    session: Session, rows: Sequence[SourcedExample], part: PartName, file: str
) -> tuple[str, ...]:
    """Hold what rows ask against all that is evaluated; return notes of those alike in other words.

    `file` is where the rows stand, or will.

    Raises:
        UserError: a row asks what is evaluated.
    """
    items, task = session.target.items, session.target.task
    evaluated = [row for of in items.evaluated.values() for row in of]
    shown = display_path(file)
    if found := find_contaminated_rows(rows, evaluated, task.kind == "choice"):
        raise UserError(contamination.problems(found, shown, "leave the row out"))
    examples = tuple(row.example for row in rows)
    places = {**items.places, **{f"{part}/{row.example.id}": row.where for row in rows}}
    train, pairs = (examples, ()) if part == "train" else ((), examples)
    own = replace(items, train=train, pairs=pairs, places=places)
    others = {m.task.name: m.items for m in session.suites}
    return refuse_or_note(task, {**others, task.name: own}, {}, {part: shown}).overlap


def record_contamination(session: Session, notes: Sequence[str]) -> dict[str, Any]:
    """Say in a manifest what the contamination check held rows against, and what it noted."""
    evaluated = sum(map(len, session.target.items.evaluated.values()))
    return {
        "evaluated": evaluated + sum(len(m.items.test) for m in session.suites),
        "contaminated": 0,
        "in_other_words": list(notes),
    }
