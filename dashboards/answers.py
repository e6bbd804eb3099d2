"""Answers: the items of a task as rows, candidates as columns; a cell opens with its prompt and scores."""

from functools import partial

import streamlit as st

from harness import store
from harness.errors import HarnessError
from harness.formatting import count, plain
from harness.records import SampleResult
from harness.report import describe_answer, describe_prompt, mark_answer
from harness.report.escape import clean
from harness.store import ItemFilter
from parts import answer_matrix, controls, project, safe_text, scores
from parts.answer_matrix import Column, Matrix

_AT_FIRST = 6  # candidates


def show_answer(matrix: Matrix, column: Column, item: str) -> None:
    """Show an answer next to that of the first column."""
    row = store.read_samples(project.runs_store(), column.digest, [item]).get(item)
    if row is None:
        safe_text.say(f"{column.name} has no stored answer to {item}.")
        return
    st.subheader(safe_text.label(f"{item}: {column.name}"), anchor=False)
    left, right = st.columns(2)
    with left:
        _show_prompt(column, matrix.task, row)
    with right:
        score = mark_answer(matrix.metric, row.parts.get(matrix.metric.name))
        safe_text.block(f"answer: {score} {row.status}", row.text)
        safe_text.whole("answer", row.text, "whole_answer")
        if row.references:
            safe_text.block("reference", " | ".join(row.references[:5]))
        safe_text.say_all(describe_answer(row))
        grades = store.find_grades(project.runs_store(), row.task, item, row.output_digest)
        for identity, grade in grades:
            text = grade.said or grade.error or "nothing"
            safe_text.say(f"{identity['judge']['model']} said: {text}", "name")
        if samples := scores.read_all_answers(column.digest, item):
            with st.expander(f"All {count(len(samples))} sampled answers"):
                for sample in samples:
                    parts, metric = sample.parts.get(matrix.metric.name), matrix.metric.name
                    scored = f" · {metric} {plain(parts[0])}" if parts and len(parts) == 1 else ""
                    title = f"answer {count(sample.index + 1)} · {sample.status}{scored}"
                    safe_text.block(title, sample.text)
        first = matrix.columns[0]
        reference = store.read_samples(project.runs_store(), first.digest, [item]).get(item)
        if first != column and reference:
            safe_text.block(f"{first.name} answered", reference.text)
            if reference.text != row.text:
                safe_text.difference(f"words that {column.name} changed", reference.text, row.text)


def _show_prompt(column: Column, task: str, row: SampleResult) -> None:
    """Show the messages as sent, or their text with special tokens; without them the stored question."""
    try:
        with st.spinner("Building the prompt"):
            sent = project.find_prompt(column.run, task, row.example_id)
    except (HarnessError, ImportError, OSError) as error:
        safe_text.block("question, as stored", row.prompt)
        safe_text.say(f"The whole prompt cannot be shown: {error}", "name")
        return
    if sent is None:
        safe_text.block("question, as stored", row.prompt)
        return
    was_sent = row.prompt_digest == sent.digest
    about = describe_prompt(sent.n_tokens, was_sent)
    safe_text.say(about, "name") if was_sent else st.warning(about)
    if st.toggle("Special tokens", key="special_tokens"):
        safe_text.block("all of it", sent.text)
    else:
        for message in sent.messages:
            safe_text.block(message["role"], message["content"])
    safe_text.whole("prompt", sent.text, "whole_prompt")


def page() -> None:
    """Draw the page."""
    purpose = "Every item with each candidate's answer. Click a cell to read it in full."
    controls.heading("Answers", purpose)
    runs, report = project.runs(), controls.report_if_any()
    controls.say_absent(report, runs)
    by_label = controls.name_runs("compare", report, runs)
    if not by_label:
        if report is None:
            controls.show_empty("No answers yet.")
        return
    first_names = controls.order_candidates(report, list(by_label))[:_AT_FIRST]
    title = "Candidates, the reference first"
    chosen_names = controls.choose_candidates("compare", list(by_label), first_names, title=title)
    keys = dict.fromkeys(key for name in chosen_names for key in by_label[name].rows if key.endswith("/test"))
    target = report.task if report is not None else ""
    tasks = sorted((key.removesuffix("/test") for key in keys), key=lambda task: task != target)
    if not tasks:
        return
    slots = st.columns([2, 2, 2, 3])
    task = _choose(slots[0], "task", tasks)
    columns = answer_matrix.columns_of(task, {name: by_label[name] for name in chosen_names})
    metric = scores.primary_metric(task, columns[-1].digest, report)
    matrix = Matrix(task, project.metric(task, metric), columns)
    slices = store.list_slices(project.runs_store(), matrix.digests[-1:])
    slice_ = _choose(slots[1], "slice", ["all", *slices])
    outcome = _choose(slots[2], "outcome", list(answer_matrix.OUTCOMES))
    search_text = slots[3].text_input(
        "Search", placeholder="in ids, prompts, answers, references", key="sought", bind="query-params"
    )
    filters = answer_matrix.find_items(matrix, outcome, "" if slice_ == "all" else slice_, search_text)
    _items(matrix, filters, f"{task}/{slice_}/{outcome}/{search_text}")


def _choose(slot: "st.delta_generator.DeltaGenerator", name: str, options: list[str]) -> str:
    """Draw a select box whose choice is kept in the page's address."""
    requested = controls.query_values(name)
    index = options.index(requested[0]) if requested and requested[0] in options else 0
    chosen = slot.selectbox(name.capitalize(), options, index=index, format_func=clean, key=f"matrix_{name}")
    controls.remember(name, [chosen] if chosen != options[0] else [])
    return str(chosen)


def _items(matrix: Matrix, filters: ItemFilter, key: str) -> None:
    runs_store, metric = project.runs_store(), matrix.metric.name
    offset, size = controls.find_offset(f"matrix/{key}"), controls.PAGE_SIZE
    n, items = store.read_answers(runs_store, matrix.digests, metric, filters, offset=offset, n=size)
    if not items:
        st.info("No item matches these filters.")
        return
    text = st.column_config.TextColumn
    widths = {"item": text(width=110, pinned=True), "question": text(width=180), "reference": text(width=110)}
    picked = st.dataframe(
        answer_matrix.style(matrix, items),
        hide_index=True,
        column_config=widths | {c.name: text(clean(c.name), width=150) for c in matrix.columns},
        key=f"matrix/{offset}/{key}",
        on_select="rerun",
        selection_mode="single-cell",
        height=controls.table_height(len(items), 460),
    )
    left, middle, right = st.columns([2, 4, 1], vertical_alignment="center")
    left.caption(f"{count(n)} items; right and wrong by {clean(metric)}")
    with middle:
        controls.turn(f"matrix/{key}", n)
    with right:
        controls.offer_csv(partial(answer_matrix.csv_rows, runs_store.folder, matrix, filters), matrix.task)
    if cells := picked.selection.cells:
        row, name = cells[0]
        controls.remember("item", [items[row].id])
        controls.remember("of", [name] if any(name == column.name for column in matrix.columns) else [])
    open_item, name = st.query_params.get("item", ""), st.query_params.get("of", "")
    column = next((column for column in matrix.columns if column.name == name), matrix.columns[-1])
    if open_item:
        show_answer(matrix, column, open_item)
    else:
        hint = "Click a cell to see its prompt as sent, the whole answer, scores, tokens and time."
        safe_text.say(hint, "name")


page()
