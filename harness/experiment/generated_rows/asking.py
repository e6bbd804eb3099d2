"""Requests to writers: what is not in the answer book is requested, as far as the budget allows.

Invariant: an answer is in the book, on the disk, before it is used and before its thread asks for the next
one, so whatever ends the requests loses at most what is under way, and the same prompt is sent once. A model
that runs here is sent sixteen prompts at a time, an endpoint as many at once as its settings say; after a
failure, which is not kept, nothing begins, and what is under way is kept. A line cut short by a kill is none.

    answers/<digest of who answers>.jsonl    an answer a line, in the order in which they came; in the runs
                                             folder of an experiment, without one in the cache
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from harness.errors import CandidateFailed
from harness.evaluation import costs
from harness.evaluation.costs import Budget, Spend
from harness.experiment.generated_rows.writers import Writer
from harness.formatting import count, pluralize, usd
from harness.models import Candidate
from harness.progress import Progress
from harness.records import Limits, Message, Output, PromptText, canonical_json, digest, parse_json
from harness.store import Store, append_lines, read_lines


class PromptRequest(NamedTuple):
    """A prompt with what its answer depends on: how it is decoded, and the seed of a drawn answer."""

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
    """Answers of one model in a folder; `identity` is all that they depend on besides the prompt."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / f"{digest(dict(identity))}.jsonl"
        self._known = _read(self.path)

    def find(self, key: str) -> Output | None:
        """Return the answer to the prompt of a key; None where it was never given."""
        return self._known.get(key)

    def keep(self, answers: Mapping[str, Output]) -> None:
        """Append answers by the keys of their prompts, but for those that failed.

        Raises:
            HarnessError: the disk is full; what was there stays.
        """
        fresh = {key: of for key, of in answers.items() if of.finish_reason != "error"}
        self._known |= fresh
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{canonical_json([key, *_fields(of)])}\n" for key, of in fresh.items())
        append_lines(Store(self.path.parent), self.path, lines)


def _fields(of: Output) -> tuple[Any, ...]:
    return of.text, of.finish_reason, of.n_prompt_tokens, of.n_output_tokens, of.compute_s


def _read(path: Path) -> dict[str, Output]:
    known: dict[str, Output] = {}
    with suppress(OSError):
        for line in read_lines(path):
            with suppress(ValueError, TypeError):
                key, *fields = parse_json(line)
                known.setdefault(key, Output(*fields))
    return known


_TOGETHER = 16  # prompts that a model here answers, and whose answers are kept, together
CHAT_TOKENS = 12  # of a template, as in `costs`
TOO_LONG = "a prompt longer than the context"  # why an answer failed


class WriterUsage(NamedTuple):
    """Tokens and time that answers took, and what they cost in USD; None where nobody knows."""

    n_prompt_tokens: int
    n_output_tokens: int
    compute_s: float
    cost_usd: float | None


class WriterPlan(NamedTuple):
    """Requests at most, those answered before, and of the others the tokens to read and at most to write.

    `cost_usd` is None where nobody knows a price.
    """

    requests: int
    known: int
    read: int
    generated: int
    cost_usd: float | None

    def __str__(self) -> str:
        """Render as one line."""
        known = f", {count(self.known)} of them answered before" if self.known else ""
        said = f"{pluralize(self.requests, 'request')}{known}: some {count(self.read)} tokens read"
        priced = "at no known price" if self.cost_usd is None else f"at most {usd(self.cost_usd)} USD"
        return f"{said}, at most {count(self.generated)} written, {priced}"


def plan_requests(writer: Writer, requests: Sequence[PromptRequest]) -> WriterPlan:
    """Count what the requests take, before one is sent."""
    book = AnswerBook(writer.folder, writer.identity)
    each = {one.key: one for one in requests}
    new = [one for key, one in each.items() if book.find(key) is None]
    read, generated = sum(map(n_read, new)), sum(one.limits.max_new_tokens for one in new)
    return WriterPlan(len(each), len(each) - len(new), read, generated, writer.planned(read, generated))


def n_read(request: PromptRequest) -> int:
    """Estimate the tokens of a prompt."""
    return sum(costs.tokens(message["content"]) + CHAT_TOKENS for message in request.messages)


def sum_usage(writer: Writer, outputs: Sequence[Output]) -> WriterUsage:
    """Add up what answers took."""
    read, written = sum(one.n_prompt_tokens for one in outputs), sum(one.n_output_tokens for one in outputs)
    return WriterUsage(read, written, sum(one.compute_s for one in outputs), writer.price(outputs))


class BudgetedWriter:
    """Asks a writer, step after step, for at most `max_cost` USD in all, those of the book counted.

    A model that runs here answers so many prompts `together`.
    """

    def __init__(
        self, writer: Writer, max_cost: float | None, progress: Progress, together: int = _TOGETHER
    ) -> None:
        self._writer, self._max_cost, self._progress = writer, max_cost, progress
        self._together = together
        self._book = AnswerBook(writer.folder, writer.identity)
        self._paid: dict[str, Output] = {}
        self._lock = Lock()

    @property
    def usage(self) -> WriterUsage:
        """Tokens and money that the answers so far took, those of the book with them."""
        return sum_usage(self._writer, list(self._paid.values()))

    def answers(self, requests: Sequence[PromptRequest], label: str) -> list[Output]:
        """Return the answer to each prompt, those that failed among them.

        Raises:
            CandidateFailed: the writer cannot be asked, or the budget does not suffice; what came is kept.
        """
        made = {one.key: of for one in requests if (of := self._book.find(one.key)) is not None}
        self._paid |= made
        if lacking := list({one.key: one for one in requests if one.key not in made}.values()):
            self._request(lacking, made, label)
        return [made[one.key] for one in requests]

    def _request(self, lacking: Sequence[PromptRequest], made: dict[str, Output], label: str) -> None:
        n, failures, budget = self._writer.num_concurrent, list[CandidateFailed](), self._budget()
        n_known, size = len(made), self._together if n is None else 1
        parts = [lacking[at : at + size] for at in range(0, len(lacking), size)]
        with self._writer.opened() as model, self._progress.stage(label) as advance:

            def request(part: Sequence[PromptRequest]) -> None:
                try:
                    if failures:
                        return
                    with _reserve(budget, part) as spend:
                        found = dict(zip([p.key for p in part], self._generate(model, part), strict=True))
                        with self._lock:
                            self._book.keep(found)
                            made.update(found)
                            advance(len(made) - n_known, len(lacking))
                        self._spend(found, spend)
                except CandidateFailed as error:
                    failures.append(error)

            with ThreadPoolExecutor(n or 1) as pool:
                list(pool.map(request, parts))
        if failures:
            raise failures[0]

    def _budget(self) -> Budget | None:
        """Return what the answers so far leave of it; None where everything may be sent."""
        if self._max_cost is None:
            return None
        writer, paid = self._writer, list(self._paid.values())
        return Budget(self._max_cost, lambda *n: writer.planned(*n) or 0.0, writer.price(paid), len(paid))

    def _spend(self, found: dict[str, Output], spend: Spend | None) -> None:
        """Count answers that were paid."""
        paid = {key: one for key, one in found.items() if one.finish_reason != "error"}
        self._paid |= paid
        if spend and paid:
            read = sum(one.n_prompt_tokens for one in paid.values())
            written = sum(one.n_output_tokens for one in paid.values())
            spend(self._writer.price(list(paid.values())), read, written)

    def _generate(self, model: Candidate, part: Sequence[PromptRequest]) -> list[Output]:
        """Answer prompts together; one that is too long has failed."""
        limits = part[0].limits
        texts = [PromptText(one.messages, chat_template=self._writer.chat) for one in part]
        prompts = [encoded.context for encoded in model.encode_all(texts)]
        fits = [len(prompt) + limits.max_new_tokens <= model.max_context for prompt in prompts]
        seeds = [one.seed for one, fit in zip(part, fits, strict=True) if fit and one.seed is not None]
        fitting = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
        outputs = iter(model.generate(fitting, limits, seeds) if fitting else ())
        return [next(outputs) if fit else _too_long(len(p)) for p, fit in zip(prompts, fits, strict=True)]


@contextmanager
def _reserve(budget: Budget | None, part: Sequence[PromptRequest]) -> Iterator[Spend | None]:
    """Set aside what some prompts may cost; nothing without a budget."""
    written = sum(one.limits.max_new_tokens for one in part)
    with budget.reserve(sum(map(n_read, part)), written) if budget else nullcontext() as spend:
        yield spend


def _too_long(n_tokens: int) -> Output:
    return Output("", "error", n_tokens, error=TOO_LONG)
