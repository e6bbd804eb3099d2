"""A browser of items: filter them, step through them, and read both answers beside each other.

Invariant: only the item that is shown is read with its texts.
"""

from collections.abc import Mapping, Sequence

import streamlit as st

from harness.formatting import count, plain
from harness.records import Sample
from harness.report.escape import clean
from parts import paired_runs, safe_text
from parts.paired_runs import Pair


def browse(pair: Pair, names: tuple[str, str], groups: Mapping[str, Sequence[str]], key: str) -> None:
    """Show the items of a pair by group (lost, gained, …), one at a time."""
    filled = {name: ids for name, ids in groups.items() if ids}
    if not filled:
        st.info("No item differs here.")
        return
    titles = {name: f"{name} ({count(len(ids))})" for name, ids in filled.items()}
    columns = st.columns([3, 2, 2, 3])
    group = columns[0].segmented_control(
        "Items", list(filled), default=next(iter(filled)), format_func=titles.__getitem__, key=f"{key}_group"
    )
    ids = list(filled[group or next(iter(filled))])
    known = paired_runs.kinds(pair)
    kinds = {i: known.get(i, ("", "")) for i in ids}
    for column, title, place in ((columns[1], "slice", 0), (columns[2], "cluster", 1)):
        options = sorted({kind[place] for kind in kinds.values() if kind[place]})
        chosen = column.selectbox(title, ["all", *options], format_func=clean, key=f"{key}_{title}")
        ids = [i for i in ids if chosen in ("all", kinds[i][place])]
    sought = columns[3].text_input(
        "Search", placeholder="in prompts, answers, references", key=f"{key}_search"
    )
    found = paired_runs.ids_with_text(pair, sought)
    ids = ids if found is None else [i for i in ids if i in found]
    if not ids:
        st.info("No item fits these filters.")
        return
    _show_one(pair, names, ids, key)


def _show_one(pair: Pair, names: tuple[str, str], ids: Sequence[str], key: str) -> None:
    what = (pair, tuple(ids))
    kept, at = st.session_state.get(f"{key}_at", (what, 0))
    at = at if kept == what else 0  # other items, or another candidate's, begin at the first
    back, forth, where, _ = st.columns([1, 1, 5, 3], vertical_alignment="bottom")
    for column, title, name, to in ((back, "← back", "back", at - 1), (forth, "next →", "forth", at + 1)):
        column.button(
            title, disabled=not 0 <= to < len(ids), key=f"{key}_{name}", width="stretch",
            on_click=_go, args=(f"{key}_at", what, to),
        )  # fmt: skip
    rows = paired_runs.two_texts(pair, ids[at])
    with where:
        safe_text.say(f"{count(at + 1)} of {count(len(ids))}: {ids[at]}")
    if rows is None:
        st.info("The texts of this item are not stored.")
        return
    old, new = rows
    safe_text.block("prompt", new.prompt)
    if new.references:
        safe_text.block("reference", " | ".join(new.references[:5]))
    left, right = st.columns(2)
    for column, name, row, side in ((left, names[0], old, "old"), (right, names[1], new, "new")):
        digest = pair.base if side == "old" else pair.new
        with column:
            safe_text.block(name if row.status == "ok" else f"{name} · {row.status}", row.text)
            safe_text.whole(name, row.text, f"{key}_{side}")
            for judge, said in paired_runs.judges_said(row):
                safe_text.say(f"{judge} said: {said}", "name")
            _show_drawn(pair.metric, paired_runs.read_all_answers(digest, row.example_id))
    if old.text != new.text:
        safe_text.difference(f"words that {names[1]} changed", old.text, new.text)


def _show_drawn(metric: str, samples: Sequence[Sample]) -> None:
    """Show every answer that was drawn to an item, with what it scores; nothing of a greedy one."""
    if not samples:
        return
    with st.expander(f"All {count(len(samples))} sampled answers"):
        for sample in samples:
            parts = sample.parts.get(metric)
            score = f" · {metric} {plain(parts[0])}" if parts and len(parts) == 1 else ""
            safe_text.block(f"answer {count(sample.index + 1)} · {sample.status}{score}", sample.text)


def _go(key: str, what: tuple[Pair, tuple[str, ...]], to: int) -> None:
    """Step to an item before the page is drawn, so that its buttons know where they are."""
    st.session_state[key] = (what, to)
