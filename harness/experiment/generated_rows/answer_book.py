"""Answer book: what one model answered to prompts, kept by content.

Invariant: an answer is on the disk before it is used, so whatever ends the asking loses none, and the same
prompt is asked once. One that failed is not kept, and a line that a kill cut short is none.

    answers/<digest of who answers>.jsonl    an answer a line, in the order in which they came; in the runs
                                             folder of an experiment, without one in the cache
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.records import Limits, Message, Output, canonical_json, digest, parse_json
from harness.store.layout import Store, append_lines, read_lines


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
    """Answers of one model in a folder; `identity` is all that they depend on besides what is asked."""

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
