"""Rewordings of texts by a model: paraphrases, or translations into another language and back.

Invariant: the same model, texts, prompts and seed give the same rewordings, from the answer book where it was
asked before. Nothing is asked any more once the answers have cost what they may.
Source: back-translation by Sennrich et al. 2016, https://arxiv.org/abs/1511.06709; there and back, to augment
training rows, by Yu et al. 2018, https://arxiv.org/abs/1804.09541, section 3.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from harness.data.edit.augment import Rewording
from harness.evaluation import costs
from harness.evaluation.rows.sampled_answers import seed_of
from harness.experiment.generated_rows.answer_book import AnswerBook, PromptRequest
from harness.experiment.generated_rows.asking import CHAT_TOKENS, BudgetedWriter, WriterPlan, WriterUsage
from harness.experiment.generated_rows.writers import Writer
from harness.progress import Progress
from harness.records import Limits, Message, Output

By = Literal["paraphrase", "back-translation"]
TEXT = "{text}"
PARAPHRASE = (
    "Write the text below in other words. Keep its meaning, its language, and every name and number. "
    f"Answer with the new text alone.\n\n{TEXT}"
)
TRANSLATE = f"Translate the text below into {{language}}. Answer with the translation alone.\n\n{TEXT}"
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»"}


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


def plan_rewordings(writer: Writer, texts: Sequence[str], how: Rewriting) -> WriterPlan:
    """Count what rewording texts takes, before anything is asked."""
    book = AnswerBook(writer.folder, writer.identity)
    first = [
        _rewording_prompt(how, text, i, how.prompts[0], text) for text in texts for i in range(how.variants)
    ]
    known = sum(book.find(one.key) is not None for one in first)
    n = len(first) * len(how.prompts)
    own = sum(costs.tokens(how.prompts[0].replace(TEXT, text)) + CHAT_TOKENS for text in texts)
    later = sum(costs.tokens(prompt) + CHAT_TOKENS + how.max_new_tokens for prompt in how.prompts[1:])
    read = how.variants * (own + later * len(texts))
    generated = n * how.max_new_tokens
    return WriterPlan(n, known, read, generated, writer.planned(read, generated))


def reword(
    writer: Writer, texts: Sequence[str], how: Rewriting, progress: Progress
) -> tuple[list[tuple[Rewording, ...]], WriterUsage]:
    """Reword each text so many times, in their order; the model is opened only where it has to be asked.

    Returns what was spent beside it.

    Raises:
        CandidateFailed: it cannot be asked, or has cost what it may; the answers so far are kept.
    """
    asking = BudgetedWriter(writer, how.max_cost, progress)
    wanted = [(text, i) for text in texts for i in range(how.variants)]
    latest: list[Rewording] = [Rewording(text) for text, _ in wanted]
    for step, prompt in enumerate(how.prompts, start=1):
        able = [k for k, one in enumerate(latest) if not one.failure]
        asked = [_rewording_prompt(how, wanted[k][0], wanted[k][1], prompt, latest[k].text) for k in able]
        label = f"{how.by} by {writer.name}"
        label += f", step {step} of {len(how.prompts)}" if len(how.prompts) > 1 else ""
        for k, output in zip(able, asking.answers(asked, label), strict=True):
            latest[k] = _read(output)
    return [tuple(latest[k : k + how.variants]) for k in range(0, len(latest), how.variants)], asking.usage


def _rewording_prompt(how: Rewriting, text: str, variant: int, prompt: str, last: str) -> PromptRequest:
    message: Message = {"role": "user", "content": prompt.replace(TEXT, last)}
    drawn = how.temperature > 0
    limits = Limits(how.max_new_tokens, (), how.temperature, how.top_p if drawn else 1.0)
    return PromptRequest((message,), limits, seed_of(how.seed, text, variant) if drawn else None)


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
