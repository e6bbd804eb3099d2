"""Special tokens written into texts: marks by which chat templates begin and end turns, of any family.

Invariant: what is found is what is removed. Angle brackets of HTML and of code are no marks: `<s>` is one at
a text's start alone and `</s>` at its end, but where a tokenizer is known to have them.
"""

import re
from collections.abc import Iterable
from functools import cache

_FAMILIES = (
    r"<[|｜][^\s|｜<>]{1,40}[|｜]>|</?(?:bos|eos|pad|(?:start|end)_of_\w+)>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|\A\s*<s>|</s>\s*\Z"
)
# What a template writes behind the token that begins a turn.
_ROLE = (
    r"(?:(?<=<\|im_start\|>)|(?<=<\|start_header_id\|>)|(?<=<start_of_turn>))"
    r"(?:system|user|assistant|model|tool)"
)


@cache
def compile_special(own: tuple[str, ...] = ()) -> re.Pattern[str]:
    """Return what finds a special token, of known families or a tokenizer's own, with the role behind it."""
    written = "|".join([*map(re.escape, sorted(own, key=len, reverse=True)), _FAMILIES])
    return re.compile(rf"(?P<token>{written})(?:{_ROLE})?")


def find_special(texts: Iterable[str], own: tuple[str, ...] = ()) -> str:
    """Return the first special token of texts as it is written; empty where they hold none."""
    special = compile_special(own)
    return next((found["token"].strip() for text in texts for found in special.finditer(text)), "")


def remove_special(text: str, own: tuple[str, ...] = ()) -> str:
    """Return a text without special tokens, wherever they stand."""
    return compile_special(own).sub("", cut_special(text, own))


def cut_special(text: str, own: tuple[str, ...] = ()) -> str:
    """Return an answer without the special tokens around it; at its start one of `own` may mean something."""
    started = re.sub(rf"\A(?:\s*(?:{_pattern(())}))+\s*", "", text)
    return re.sub(rf"(?:\s*(?:{_pattern(own)}))+\s*\Z", "", started)


def _pattern(own: tuple[str, ...]) -> str:
    return compile_special(own).pattern.replace("?P<token>", "?:")
