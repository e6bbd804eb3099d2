"""One answer, whole: its prompt as it was sent, reference, scores by every metric, tokens and time.

Invariant: only the item that is shown is read with its texts.
"""

from collections.abc import Sequence

import streamlit as st

from harness import store
from harness.errors import HarnessError
from harness.formatting import count, plain
from harness.records import Sample, SampleResult
from harness.report import describe_answer, describe_prompt, mark_answer
from parts import paired_runs, project, safe_text
from parts.answer_matrix import Column, Matrix


def show(of: Matrix, column: Column, item: str) -> None:
    """Show an answer beside that of the first column."""
    row = store.read_samples(project.project().store, column.digest, [item]).get(item)
    if row is None:
        safe_text.say(f"{column.name} has no stored answer to {item}.")
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
    safe_text.say_all(describe_answer(row))
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
    was_sent = row.prompt_digest == sent.digest
    said = describe_prompt(sent.n_tokens, was_sent)
    safe_text.say(said, "name") if was_sent else st.warning(said)
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
