"""How often the language of a target is recognised: on translated messages of Debian's programs. Run by hand.

The messages of a program in a language stand for the rows of a target: those of at most two lines, without
placeholders and options, and at least ten of them. English is what the German ones translate.

`python -m reports.studies.languages` takes a minute and prints the table of `docs/howto/lm_eval.md`. It reads
`/usr/share/locale`; a machine with other programs gives other counts.
"""

from collections import Counter
from collections.abc import Iterator
from gettext import GNUTranslations
from pathlib import Path

from harness.evaluation.languages import SPOKEN, find_language
from harness.records import count_letters

FOLDER = Path("/usr/share/locale")
_FOLDERS = {"zh": "zh_CN", "pt": "pt_BR", "en": "de"}
_LEAST_LETTERS, _FEWEST_TEXTS = (20, 40), 10


def main() -> None:
    """Print how many targets of each language are recognised, and which other languages are named."""
    print(f"| language | {' | '.join(f'messages of at least {n} letters' for n in _LEAST_LETTERS)} |")
    print(f"|---{'|--:' * len(_LEAST_LETTERS)}|")
    sums = [(0, 0)] * len(_LEAST_LETTERS)
    wrong = Counter[str]()
    for code, spoken in SPOKEN.items():
        named = [[find_language(texts) for texts in read_targets(code, n)] for n in _LEAST_LETTERS]
        counts = [(of_length.count(code), len(of_length)) for of_length in named]
        sums = [(right + r, total + n) for (right, total), (r, n) in zip(sums, counts, strict=True)]
        wrong += Counter(f"{code} as {other}" for of_length in named for other in of_length if other not in (code, ""))
        print(f"| {spoken.name} | {' | '.join(f'{r} of {n}' for r, n in counts)} |")
    print(f"| all | {' | '.join(f'{r} of {n}' for r, n in sums)} |\n\nwrong: {dict(wrong)}")


def read_targets(code: str, n_letters: int) -> Iterator[list[str]]:
    """Yield the messages of each program in a language, of at least so many letters each."""
    for file in sorted((FOLDER / _FOLDERS.get(code, code) / "LC_MESSAGES").glob("*.mo")):
        try:
            with file.open("rb") as opened:
                pairs = GNUTranslations(opened)._catalog.items()  # type: ignore[attr-defined]
        except UnicodeDecodeError:  # the file names another character set than its own
            continue
        translated = {old: new for old, new in pairs if isinstance(old, str) and old and new not in ("", old)}
        texts = translated if code == "en" else translated.values()
        kept = {text for text in texts if count_letters(text) >= n_letters and text.count("\n") <= 1}
        kept = {text for text in kept if "%" not in text and "--" not in text}
        if len(kept) >= _FEWEST_TEXTS:
            yield sorted(kept)


if __name__ == "__main__":
    main()
