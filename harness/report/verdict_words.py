"""The words that verdicts are printed in, and how each is marked.

Invariant: a verdict has one word and one class in the terminal, on pages, in pictures and on the dashboard.
"""

from harness.formatting import UNKNOWN

# By the outcome of a verdict or of a rule.
WORDS = {
    "pass": "PASS",
    "fail": "FAIL",
    "inconclusive": "UNDECIDED",
    "harness-drift": "DRIFT",
    "skipped": UNKNOWN,
}
ERROR = "ERROR"  # of a run that failed, which has no verdict

# What a word tells: the class of its colour on pages and in pictures.
CLASSES = {
    "PASS": "passes",
    "FAIL": "fails",
    "UNDECIDED": "undecided",
    "DRIFT": "undecided",
    ERROR: "fails",
}
_COLOURS = {"passes": "green", "fails": "red", "undecided": "yellow"}
STYLES = {word: _COLOURS[class_] for word, class_ in CLASSES.items()}  # on the terminal
