"""Rewordings of texts by a model: paraphrases, or translations into another language and back.

Invariant: the same model, texts, prompts and seed give the same rewordings, from the answer book where it was
asked before. Nothing is asked any more once the answers have cost what they may.
Source: back-translation by Sennrich et al. 2016, https://arxiv.org/abs/1511.06709; there and back, to augment
training rows, by Yu et al. 2018, https://arxiv.org/abs/1804.09541, section 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

from harness.data.edit.augment import Rewording
from harness.errors import CandidateFailed, Problem, UserError
from harness.evaluation import costs
from harness.evaluation.candidates import refuse_silent
from harness.evaluation.rows.sampled_answers import seed_of
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.experiment.generated_rows.answer_book import AnswerBook, Asked
from harness.experiment.preparation.candidate_problems import key_problems
from harness.experiment.weights.candidate_weights import ensure_weights, stored_weights
from harness.formatting import count, usd
from harness.models.hf import Candidate
from harness.models.openai_api import ChatCandidate, Server, Settings
from harness.progress import Progress
from harness.provenance.code_versions import versions_of
from harness.records import Limits, Message, Output, digest
from harness.spec import TokenPrices

By = Literal["paraphrase", "back-translation"]
TEXT = "{text}"
PARAPHRASE = (
    "Write the text below in other words. Keep its meaning, its language, and every name and number. "
    f"Answer with the new text alone.\n\n{TEXT}"
)
TRANSLATE = f"Translate the text below into {{language}}. Answer with the translation alone.\n\n{TEXT}"
_TOGETHER = 16  # prompts that are asked, and kept, together
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}
_CHAT_TOKENS = 12  # of a template, as in `costs`


class Rewriting(NamedTuple):
    """Prompts of a rewording, one after the other, each with the answer to the one before, and their draw.

    So many `variants` are drawn of each text, at a temperature, by a seed; at 0 there is one.
    `max_new_tokens` are those of an answer, `max_cost` is what all may cost in USD, None for anything.
    """

    by: By
    prompts: tuple[str, ...]
    variants: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    max_cost: float | None = None


class Writer(NamedTuple):
    """Model that rewords: its name, all that its answers depend on, and how it is opened.

    `price` is what answers cost together in USD, `planned` what reading and writing so many tokens would;
    None where nobody knows. `chat` says that messages are written by a chat template.
    """

    name: str
    identity: Mapping[str, Any]
    opened: Callable[[], AbstractContextManager[Candidate]]
    price: Callable[[Sequence[Output]], float | None]
    planned: Callable[[int, int], float | None]
    chat: bool = True


def candidate_writer(session: Session, name: str) -> Writer:
    """Return a candidate of an experiment as what rewords; its weights are made where none are stored.

    Raises:
        UserError: it generates no text, or cannot be asked.
    """
    candidate, seed = session.candidates[name], session.experiment.seeds[0]
    refuse_silent(candidate)
    where, source = f"candidate {name}", candidate.source
    if not candidate.method.makes_language_model:
        found = f"the method {source.method}, which generates no text"
        raise UserError(Problem(where, found, "a candidate that generates its answers", "name another"))
    if problems := list(key_problems(session, {name: where})):
        raise UserError(problems)
    if candidate.is_remote:
        settings = Settings(**source.params)
        prices = settings.usd_per_million_tokens or session.experiment.decide.usd_per_million_tokens
        return endpoint_writer(settings.model_copy(update={"usd_per_million_tokens": prices}), name)
    machine, stored = session.machine, stored_weights(session, candidate, seed)
    if stored is None and session.dry_run:
        raise UserError(Problem(where, "no weights yet", "weights to count with", f"harness train {name}"))
    weights = stored or ensure_weights(session, candidate, seed)
    base, hour = candidate.served_base, session.experiment.decide.device_hour_usd
    engine, layout = session.engine(base)
    computed = {"engine": engine, "layout": layout, "precision": machine.precision, "device": machine.device}
    identity = {
        "weights": weights.digest,
        "template": base.template_digest,
        **computed,
        "code": versions_of("tokenization", "layout"),
    }

    def price(outputs: Sequence[Output]) -> float:
        return costs.price_usd(sum(one.compute_s for one in outputs), machine.device, hour)

    def planned(read: int, generated: int) -> float:
        seconds = session.seconds(costs.Work(read, generated), base)
        return costs.price_usd(seconds, machine.device, hour)

    chat = session.target.task.chat_template
    return Writer(name, identity, lambda: open_weights(session, weights), price, planned, chat)


def endpoint_writer(settings: Settings, name: str = "") -> Writer:
    """Return an endpoint as what rewords, asked by chat."""
    settings = settings.model_copy(update={"protocol": "chat"})

    @contextmanager
    def opened() -> Iterator[Candidate]:
        server = Server(settings)
        try:
            yield ChatCandidate(server, digest(settings.name))
        finally:
            server.api.close()

    def price(outputs: Sequence[Output]) -> float | None:
        prices = settings.usd_per_million_tokens
        if prices is None or not all(one.n_prompt_tokens for one in outputs):
            return None
        return sum(_usd(one.n_prompt_tokens, one.n_output_tokens, prices) for one in outputs)

    def planned(read: int, generated: int) -> float | None:
        prices = settings.usd_per_million_tokens
        return None if prices is None else _usd(read, generated, prices)

    identity = {"base_url": settings.base_url, "model": settings.model, "protocol": "chat"}
    return Writer(name or settings.name, identity, opened, price, planned)


def _usd(read: int, written: int, prices: TokenPrices) -> float:
    return costs.request_usd(costs.Tokens(read, 0, written), prices)


class Plan(NamedTuple):
    """Requests that rewording takes at most, the tokens read and written, those known, and their price."""

    requests: int
    known: int
    read: int
    generated: int
    cost_usd: float | None

    def __str__(self) -> str:
        """Render as one line."""
        known = f", {count(self.known)} of them answered before" if self.known else ""
        said = f"{count(self.requests)} requests{known}: some {count(self.read)} tokens read"
        priced = "at no known price" if self.cost_usd is None else f"at most {usd(self.cost_usd)} USD"
        return f"{said}, at most {count(self.generated)} written, {priced}"


def plan_rewordings(writer: Writer, texts: Sequence[str], how: Rewriting) -> Plan:
    """Count what rewording texts takes, before anything is asked."""
    book = AnswerBook(writer.identity)
    first = [_asked(how, text, i, how.prompts[0], text) for text in texts for i in range(how.variants)]
    known = sum(book.find(one.key) is not None for one in first)
    n = len(first) * len(how.prompts)
    own = sum(costs.tokens(how.prompts[0].replace(TEXT, text)) + _CHAT_TOKENS for text in texts)
    later = sum(costs.tokens(prompt) + _CHAT_TOKENS + how.max_new_tokens for prompt in how.prompts[1:])
    read = how.variants * (own + later * len(texts))
    generated = n * how.max_new_tokens
    return Plan(n, known, read, generated, writer.planned(read, generated))


def reword(
    writer: Writer, texts: Sequence[str], how: Rewriting, progress: Progress
) -> list[tuple[Rewording, ...]]:
    """Reword each text so many times, in their order; the model is opened only where it has to be asked.

    Raises:
        CandidateFailed: it cannot be asked, or has cost what it may; the answers so far are kept.
    """
    asking = _Asking(writer, how, progress)
    wanted = [(text, i) for text in texts for i in range(how.variants)]
    latest: list[Rewording] = [Rewording(text) for text, _ in wanted]
    for step, prompt in enumerate(how.prompts, start=1):
        able = [k for k, one in enumerate(latest) if not one.failure]
        asked = [_asked(how, wanted[k][0], wanted[k][1], prompt, latest[k].text) for k in able]
        label = f"{how.by} by {writer.name}"
        label += f", step {step} of {len(how.prompts)}" if len(how.prompts) > 1 else ""
        for k, output in zip(able, asking.answers(asked, label), strict=True):
            latest[k] = _read(output)
    return [tuple(latest[k : k + how.variants]) for k in range(0, len(latest), how.variants)]


def _asked(how: Rewriting, text: str, variant: int, prompt: str, last: str) -> Asked:
    message: Message = {"role": "user", "content": prompt.replace(TEXT, last)}
    drawn = how.temperature > 0
    limits = Limits(how.max_new_tokens, (), how.temperature, how.top_p if drawn else 1.0)
    return Asked((message,), limits, seed_of(how.seed, text, variant) if drawn else None)


class _Asking:
    """Asks a model for what is not in its book, some prompts together, as far as the cost allows."""

    def __init__(self, writer: Writer, how: Rewriting, progress: Progress) -> None:
        self._writer, self._how, self._progress = writer, how, progress
        self._book = AnswerBook(writer.identity)
        self._given: list[Output] = []

    def answers(self, asked: Sequence[Asked], label: str) -> list[Output]:
        """Return the answer to each prompt, those that failed among them."""
        known = {one.key: of for one in asked if (of := self._book.find(one.key)) is not None}
        self._given += known.values()
        lacking = {one.key: one for one in asked if one.key not in known}
        made = dict(self._ask(list(lacking.values()), label)) if lacking else {}
        made |= known
        return [made[one.key] for one in asked]

    def _ask(self, lacking: Sequence[Asked], label: str) -> Iterator[tuple[str, Output]]:
        with self._writer.opened() as model, self._progress.stage(label) as advance:
            for start in range(0, len(lacking), _TOGETHER):
                self._refuse_beyond_cost()
                part = lacking[start : start + _TOGETHER]
                keys = [one.key for one in part]
                made = dict(zip(keys, self._generate(model, part), strict=True))
                self._book.keep(made)
                self._given += made.values()
                yield from made.items()
                advance(start + len(part), len(lacking))

    def _generate(self, model: Candidate, part: Sequence[Asked]) -> list[Output]:
        limits = part[0].limits
        prompts = [model.encode(one.messages, chat_template=self._writer.chat).context for one in part]
        fits = [len(prompt) + limits.max_new_tokens <= model.max_context for prompt in prompts]
        seeds = [one.seed for one, fit in zip(part, fits, strict=True) if fit and one.seed is not None]
        fitting = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        outputs = iter(model.generate(fitting, limits, seeds) if fitting else ())
        return [next(outputs) if fit else _too_long(len(p)) for p, fit in zip(prompts, fits, strict=True)]

    def _refuse_beyond_cost(self) -> None:
        """Refuse to ask on once the answers have cost what they may, or nobody knows what.

        Raises:
            CandidateFailed: they have.
        """
        most = self._how.max_cost
        if most is None:
            return
        spent = self._writer.price(self._given)
        if spent is None:
            found = f"answers whose cost is unknown, and --max-cost {most:g}"
            raise CandidateFailed(found, "--prices, or a server that counts tokens, or no --max-cost")
        if spent >= most:
            found = (
                f"{count(len(self._given))} answers have cost {usd(spent)} USD, and --max-cost is {most:g}"
            )
            raise CandidateFailed(found, "a larger --max-cost; the answers so far are kept")


def _too_long(n_tokens: int) -> Output:
    return Output("", "error", n_tokens, error="a prompt longer than the context")


def _read(output: Output) -> Rewording:
    """Take a text out of an answer: without quotes around it, and none that failed or was cut."""
    if output.finish_reason == "error":
        return Rewording("", f"failed: {output.error}" if output.error else "failed")
    if output.finish_reason == "length":
        return Rewording("", "was cut at --max-new-tokens")
    text = output.text.strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return Rewording(text, "" if text else "is empty")
