"""Languages of texts, and the tasks of lm-eval's catalogue in these languages.

Invariant: a language is named only if nearly all of many sufficiently long texts are in it. A text is in none
if five languages are about as likely: so are languages that the classifier does not know, such as Hindi in
Latin letters, while no language has four close relatives (margins of 422 sentences in 45 languages, and of
122 romanised ones).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from harness.cache import memo
from harness.evaluation.session import MeasuredTask
from harness.records import count_letters, digest


class Spoken(NamedTuple):
    """Name of a language, and the multiple-choice tasks of lm-eval in it, each with the chance of a guess."""

    name: str
    tasks: Mapping[str, float] = {}


def _tasks(suffix: str, reading: str, *tasks: str) -> dict[str, float]:
    chances = {"arc": 0.25, "hellaswag": 0.25, "xnli": 1 / 3, "xstorycloze": 0.5, "paws": 0.5}
    chance_by_task = {f"{name}_{suffix}": chances[name] for name in tasks}
    return {f"belebele_{reading}": 0.25, f"m_mmlu_{suffix}": 0.25} | chance_by_task


SPOKEN: Mapping[str, Spoken] = {
    "en": Spoken("English"),
    "zh": Spoken("Chinese", _tasks("zh", "zho_Hans", "arc", "xnli", "xstorycloze")),
    "es": Spoken("Spanish", _tasks("es", "spa_Latn", "arc", "hellaswag", "xnli", "xstorycloze")),
    "fr": Spoken("French", _tasks("fr", "fra_Latn", "arc", "hellaswag", "xnli")),
    "de": Spoken("German", _tasks("de", "deu_Latn", "arc", "hellaswag", "xnli")),
    "pt": Spoken("Portuguese", _tasks("pt", "por_Latn", "arc", "hellaswag")),
    "ru": Spoken("Russian", _tasks("ru", "rus_Cyrl", "arc", "hellaswag", "xnli", "xstorycloze")),
    "ja": Spoken("Japanese", {"belebele_jpn_Jpan": 0.25, "global_mmlu_ja": 0.25, "paws_ja": 0.5}),
    "ar": Spoken("Arabic", _tasks("ar", "arb_Arab", "arc", "hellaswag", "xnli", "xstorycloze")),
    "hi": Spoken("Hindi", _tasks("hi", "hin_Deva", "arc", "hellaswag", "xnli", "xstorycloze")),
}
_MOST_TEXTS, _FEWEST_TEXTS, _READ = 40, 10, 400  # the last in characters of a text
_FEWEST_LETTERS, _SHARE = 20, 0.8
_RIVAL, _LEAD = 4, 0.35  # fifth language, and the least difference to it, in nats per character
_TAKEN_FOR = ("la", "zxx")  # what py3langid calls program code, JSON and prescriptions


def classify(text: str) -> str:
    """Return the code of the language that a text is in; empty for code, and where none is clear."""
    import py3langid

    ranking = py3langid.rank(text)
    is_clear = ranking[0][1] - ranking[_RIVAL][1] >= _LEAD * len(text)
    return str(ranking[0][0]) if is_clear and ranking[0][0] not in _TAKEN_FOR else ""


def find_language(texts: Iterable[str]) -> str:
    """Return the code of the language of nearly all texts that are long enough to tell, or an empty text."""
    distinct_texts = list(dict.fromkeys(t[:_READ] for t in texts if count_letters(t) >= _FEWEST_LETTERS))
    sampled_texts = distinct_texts[:: -(-len(distinct_texts) // _MOST_TEXTS) or 1]
    if len(sampled_texts) < _FEWEST_TEXTS:
        return ""
    language, n = Counter(map(classify, sampled_texts)).most_common(1)[0]
    return language if n >= _SHARE * len(sampled_texts) else ""


def describe_unspoken(target: MeasuredTask, suites: Iterable[MeasuredTask]) -> Iterator[str]:
    """Describe each language of the target, if known, that no task of the capability suites is in."""
    capability = [m for m in suites if m.role == "capability"]
    measured_tasks = [target, *capability]
    limits = [_MOST_TEXTS, _FEWEST_TEXTS, _READ, _FEWEST_LETTERS, _SHARE, _RIVAL, _LEAD, _TAKEN_FOR]
    key = digest([limits, *([m.task.name, m.versions["test"]] for m in measured_tasks)])

    def find_languages() -> list[list[str]]:  # of the prompts and of the answers of each task
        codes_by_task = []
        for items in (m.items.test for m in measured_tasks):
            prompts = ("\n".join([item.prompt, *item.choices[:1]]) for item in items)
            texts = (prompts, (reference for item in items for reference in item.references))
            codes_by_task.append([*dict.fromkeys(filter(None, map(find_language, texts)))])
        return codes_by_task

    target_codes, *codes_by_suite = memo("languages", key, find_languages)
    suite_codes = dict.fromkeys(language for languages in codes_by_suite for language in languages)
    for language in [code for code in target_codes if suite_codes and code not in suite_codes]:
        unspoken = SPOKEN.get(language, Spoken(f"the language “{language}”"))
        suite_names = " and ".join(SPOKEN.get(code, Spoken(code)).name for code in suite_codes)
        examples = ", ".join([*unspoken.tasks][:3])
        step = f"tasks of lm-eval such as {examples} in a suite" if examples else "a suite in that language"
        yield (
            f"language: the target is in {unspoken.name}, the capability suites are in {suite_names}: what is"
            f" forgotten of {unspoken.name} is not measured; next: {step}"
        )
