"""One answer, whole: its prompt as it was sent, reference, scores by every metric, tokens and time.

Invariant: only the item that is shown is read with its texts.
"""

from collections.abc import Sequence

import streamlit as st

from harness import store
from harness.errors import HarnessError
from harness.formatting import count, plain, seconds
from harness.records import Sample, SampleResult
from harness.report import mark_answer
from parts import paired_runs, project, safe_text
from parts.answer_matrix import Column, Matrix


def show(of: Matrix, column: Column, item: str) -> None:
    """Show an answer beside that of the first column."""
    row = store.read_samples(project.project().store, column.digest, [item]).get(item)
    if row is None:
        safe_text.say(f"Not stored of {column.name}: {item}")
        return
    st.subheader(safe_text.label(f"{item}: {column.name}"), anchor=False)
    left, right = st.columns(2)
    with left:
        _show_prompt(column, of.task, row)
    with right:
        _show_answer(of, column, row)


def _show_answer(of: Matrix, column: Column, row: SampleResult) -> None:
    score = mark_answer(of.metric, row.parts.get(of.metric.name))
    safe_text.block(f"answer: {score} {row.status}", row.text)
    safe_text.whole("answer", row.text, "whole_answer")
    if row.references:
        safe_text.block("reference", " | ".join(row.references[:5]))
    safe_text.say_all(_facts(row))
    for judge, said in paired_runs.judges_said(row):
        safe_text.say(f"{judge} said: {said}", "name")
    _show_drawn(of.metric.name, paired_runs.read_all_answers(column.digest, row.example_id))
    first = of.columns[0]
    if first != column:
        found = store.read_samples(project.project().store, first.digest, [row.example_id])
        if before := found.get(row.example_id):
            safe_text.block(f"{first.name} answered", before.text)
            if before.text != row.text:
                safe_text.difference(f"words that {column.name} changed", before.text, row.text)


def _facts(row: SampleResult) -> list[str]:
    """Say what each metric makes of an answer, and what the answer took."""
    parts = {name: ", ".join(map(plain, of)) if of else "not scored" for name, of in row.parts.items()}
    tokens = f"{count(row.n_prompt_tokens)} of the prompt + {count(row.n_output_tokens)} of the answer"
    said = [f"{name.replace('_', ' ')}: {text}" for name, text in parts.items()]
    said += [f"tokens: {tokens}"] if row.n_prompt_tokens else []
    said += [f"time in its batch: {seconds(row.compute_s)}"] if row.compute_s else []
    said += (
        [f"margin of the right choice: {plain(row.margin, sign=True)} nats"] if row.margin is not None else []
    )
    said += [f"passages: {', '.join(row.passages)}"] if row.passages else []
    return said + ([f"error: {row.error}"] if row.error else [])


def _show_prompt(column: Column, task: str, row: SampleResult) -> None:
    """Show the messages as they were sent, or their text with special tokens; else the stored question."""
    try:
        with st.spinner("Putting the prompt together"):
            sent = project.find_prompt(column.run, task, row.example_id)
    except (HarnessError, ImportError, OSError) as error:
        safe_text.block("question, as stored", row.prompt)
        safe_text.say(f"The whole prompt cannot be shown: {error}", "name")
        return
    if sent is None:
        safe_text.block("question, as stored", row.prompt)
        return
    if row.prompt_digest != sent.digest:
        st.warning(
            "Made of the files as they are now, and not what was sent: these files, or shots, are others."
        )
    else:
        safe_text.say(f"The prompt as it was sent, {count(sent.n_tokens)} tokens.", "name")
    if st.toggle("Special tokens", key="special_tokens"):
        safe_text.block("all of it", sent.text)
    else:
        for message in sent.messages:
            safe_text.block(message["role"], message["content"])
    safe_text.whole("prompt", sent.text, "whole_prompt")


def _show_drawn(metric: str, samples: Sequence[Sample]) -> None:
    """Show every answer that was drawn to an item, with what it scores; nothing of a greedy one."""
    if not samples:
        return
    with st.expander(f"All {count(len(samples))} sampled answers"):
        for sample in samples:
            parts = sample.parts.get(metric)
            score = f" · {metric} {plain(parts[0])}" if parts and len(parts) == 1 else ""
            safe_text.block(f"answer {count(sample.index + 1)} · {sample.status}{score}", sample.text)
