"""Special tokens in texts: end tokens and role marks of chat models, of the base and of known families.

False alarms: none of the base's own tokens; a text about chat templates, and HTML that is struck through as a
whole (`<s>…</s>`), show marks of other families on purpose.
"""

from collections.abc import Iterator

from harness.data.check import CheckContext, Finding
from harness.data.check._table import RowTable
from harness.data.check.personal_data import excerpt
from harness.data.special_tokens import find_special


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose answers, and those whose prompts, hold special tokens."""
    own = given.tokenizer.special if given.tokenizer else ()
    answers, prompts = dict[str, str](), dict[str, str]()
    for entry in table.entries:
        of = entry.qa
        if found := find_special([*of.answers, entry.answer], own):
            answers[entry.where] = found
        elif found := find_special((of.question, of.context, of.system), own):
            prompts[entry.where] = found
    meaning = "they are read as text: no right answer says so, and a model would learn to write it"
    for rows, what, why in (
        (answers, "answers", meaning),
        (
            prompts,
            "prompts",
            "they are read as text, and end no turn: often rows that a template wrote before",
        ),
    ):
        if rows:
            named = sorted(set(rows.values()))
            is_own = given.tokenizer is not None and not all(find_special([token]) for token in named)
            base = f" --base {given.tokenizer.name}" if is_own and given.tokenizer else ""
            yield Finding(
                "error" if rows is answers else "warning",
                f"special tokens in {what}: {', '.join(named[:5])}",
                why,
                len(table.entries),
                tuple(rows),
                excerpt(next(iter(rows.values())), 40),
                f"harness data clean FILE --out OUT --special-tokens{base}",
            )
