"""Untrusted texts on a page (names, prompts, answers, sentences), always shown as plain text.

Invariant: texts lose control and direction characters, are truncated to a readable length, and are escaped
before they become HTML; only escaped names go through Markdown.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from html import escape

import streamlit as st

from harness import formatting
from harness.report import CLASSES
from harness.report.escape import clean, clean_lines
from harness.report.pictures import Heat

LONGEST = 6_000  # characters of one text on a page
_MOST_WORDS = 1_500  # in a diff
COLOURS = {"passes": "#0072b2", "fails": "#d05200", "undecided": "#a87400"}  # of verdicts, on every page
_BADGES = {"ok": "passes", "regression": "fails", "error": "fails"} | dict.fromkeys(
    ("suspect", "harness-drift"), "undecided"
)
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII characters that Markdown allows to escape
_STYLE = """<style>
.stMainBlockContainer{padding:2.6rem 3rem 3rem}
.quoted{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;overflow:auto;max-height:26rem;
  font:.875rem/1.55 ui-monospace,"Source Code Pro",monospace;padding:.7rem .9rem;margin:0 0 .6rem;
  border:1px solid rgb(128 128 128/.35);border-radius:8px}
.quoted del{text-decoration:line-through;background:rgb(213 94 0/.22);border-radius:3px}
.quoted ins{text-decoration:none;background:rgb(0 114 178/.22);border-radius:3px;font-weight:600}
.said{margin:.1rem 0 .5rem;max-width:72rem;line-height:1.55}
.lead{font-size:1.15rem;line-height:1.5;font-weight:600;margin:.2rem 0 .6rem;max-width:72rem}
.cells{border-collapse:collapse;font-size:.82rem;line-height:1.35;margin:0 0 .5rem}
.cells td,.cells th{text-align:left;white-space:nowrap;padding:.22rem .8rem .22rem 0}
.cells td,.cells th{border-bottom:1px solid rgb(128 128 128/.3)}
.cells.heat td{padding:.3rem .8rem;border:2px solid transparent;background-clip:padding-box}
.cells .passes,.cells .fails,.cells .undecided{font-weight:700}
.name{font-size:.8rem;opacity:.72;margin:0 0 .25rem}
.badge{display:inline-block;border-radius:99px;padding:.05rem .6rem;font-size:.8rem;font-weight:600}
.badge{border:1.5px solid;color:#77808a}
"""


def style() -> None:
    """Add the style sheet of all texts to the page."""
    verdicts = (f".cells .{name},.badge.{name}{{color:{colour}}}" for name, colour in COLOURS.items())
    st.html(f"{_STYLE}{''.join(verdicts)}</style>")


def say(sentence: str, kind: str = "said") -> None:
    """Write one sentence, as text."""
    st.html(f'<p class="{kind}">{escape(clean(sentence))}</p>')


def say_all(sentences: Iterable[str]) -> None:
    """Write a list of sentences, as text."""
    items = "".join(f"<li>{escape(clean(sentence))}</li>" for sentence in sentences)
    if items:
        st.html(f'<ul class="said">{items}</ul>')


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Show cells as text; verdicts are coloured."""
    head = "".join(f"<th>{escape(clean(column))}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    st.html(f'<div style="overflow-x:auto"><table class="cells"><tr>{head}</tr>{body}</table></div>')


def heat(changes: Heat) -> None:
    """Show changes as a heat map: blue gained, vermilion lost, bold if the interval excludes 0."""
    head = "".join(f"<th>{escape(clean(column))}</th>" for column in ("task", *changes.labels))
    rows = [f"<tr>{head}</tr>"]
    for task, cells in changes.rows:
        shown = [f"<th>{escape(clean(task))}</th>"]
        for cell in cells:
            if cell is None:
                shown.append("<td></td>")
                continue
            red_green_blue = "196 74 0" if cell.strength < 0 else "0 114 178"
            colour = f"background:rgb({red_green_blue}/{0.5 * abs(cell.strength):.2f})"
            weight = "font-weight:700" if cell.shown else ""
            text = escape(f"{cell.change} {cell.interval}")
            shown.append(f'<td style="{colour};{weight}" title="{escape(clean(cell.tooltip))}">{text}</td>')
        rows.append(f"<tr>{''.join(shown)}</tr>")
    table = f'<table class="cells heat">{"".join(rows)}</table>'
    st.html(f'<div style="overflow-x:auto">{table}</div>')


def _cell(text: str) -> str:
    return f'<td class="{CLASSES.get(text, "")}">{escape(clean(text))}</td>'


def command(line: str, purpose: str) -> None:
    """Show a command and its purpose."""
    typed = f"<code>{escape(clean(line))}</code> " if line else ""
    st.html(f'<p class="said">{typed}{escape(clean(purpose))}</p>')


def label(name: str) -> str:
    """Escape a name for Streamlit's Markdown: labels, headings, captions."""
    return _PUNCTUATION.sub(r"\\\g<0>", clean(name))


def clean_and_cut(text: str) -> str:
    """Clean a text and truncate it to `LONGEST`, with a note."""
    shown = clean_lines(text[:LONGEST])
    return shown if len(text) <= LONGEST else f"{shown} … (cut: {formatting.count(len(text))} characters)"


def block(name: str, text: str) -> None:
    """Show a text under its name."""
    _show_named(name, escape(clean_and_cut(text)))


def whole(name: str, text: str, key: str) -> None:
    """Offer a truncated text as a download."""
    if len(text) > LONGEST:
        size = formatting.size(len(text.encode("utf-8", "replace")))
        st.download_button(
            f"{label(name)}: all of it ({size})", text.encode("utf-8", "replace"), f"{key}.txt", key=key
        )


def difference(name: str, old: str, new: str) -> None:
    """Show a word diff of two texts: deletions struck out, insertions marked."""
    before, after = (re.findall(r"\s+|\w+|[^\w\s]", clean_and_cut(text))[:_MOST_WORDS] for text in (old, new))
    out = []
    for change, a0, a1, b0, b1 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        deleted, inserted = escape("".join(before[a0:a1])), escape("".join(after[b0:b1]))
        if change == "equal":
            out.append(deleted)
            continue
        marked = (("del", deleted), ("ins", inserted))
        out.append(" ".join(f"<{tag}>{words}</{tag}>" for tag, words in marked if words))
    _show_named(name, "".join(out))


def _show_named(name: str, html: str) -> None:
    st.html(f'<div class="name">{escape(clean(name))}</div><div class="quoted">{html or "&nbsp;"}</div>')


def badge(word: str) -> None:
    """Show a night's verdict: a word in a coloured frame."""
    st.html(f'<span class="badge {_BADGES.get(word, "none")}">{escape(clean(word))}</span>')
