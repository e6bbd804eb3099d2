"""Folder for `hf upload`: the merged model and a card with the measurements; nothing is uploaded.

The card contains numbers, names and digests, but no text of the data.
Source: the model cards of huggingface_hub
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.data import Split
from harness.errors import UserError
from harness.evaluation.session import MeasuredTask
from harness.experiment import report_stored
from harness.exports import PRECISIONS, ExportJob, ExportPlan, Format, Written, write_whole
from harness.models.hub import HUB_ID, LICENSE, NAMES
from harness.report import ResultDocument, Section, experiment_document, markdown
from harness.spec import HUB

_SHOWN = ("scores", "heat")  # kinds of sections shown besides the gate's
_UNKNOWN_LICENSE = (
    "The licence of the base model is not known here: look it up, and write it into the head of this card"
    " before you upload it."
)


def write(job: ExportJob, folder: Path) -> Written:
    """Write the merged model and its card: metadata for the hub, then sections for people."""
    from huggingface_hub import ModelCard, ModelCardData

    plan, session = job.plan, job.session
    report = report_stored(session, [*session.candidates], plan.run.candidate)
    fact = next((f for f in report.facts if f.run_id == plan.run.run_id), None)
    if fact is None:
        found, expected = "a run that the report does not show", "the candidate's newest run"
        step = f"harness export {plan.run.candidate} --to hub, or {plan.run.run_id} --to merged"
        raise UserError(f"run {plan.run.run_id}", found, expected, step)
    written = write_whole(job, folder, plan.quantization)
    name = plan.run.base_model
    base: str | None = HUB_ID
    license_name: str | None = LICENSE
    if name not in NAMES:
        license_name = None
        with suppress(Exception):  # the base's card may contain anything
            license_name = ModelCard.load(plan.source.path / "README.md").data.license
        # The base's id on the hub, if it is known.
        is_local = Path(name).is_absolute() or Path(name).exists()
        base = None if is_local else name.removeprefix(HUB)
    head = ModelCardData(
        base_model=base, license=license_name, library_name="transformers", pipeline_tag="text-generation"
    )
    whole: Any = experiment_document(report)
    table, sections = whole.first.table, [_weights(plan, license_name), _rows(job), _prompts(job)]
    sections.append(Section("scores", "Scores", table.columns, table.rows, notes=table.notes))
    sections += [
        replace(section, appendix=False)
        for section in whole.sections
        if section.kind in _SHOWN or (section.kind == "gate" and section.label == fact.label)
    ]
    verdict = fact.verdict.sentence if fact.verdict else "No verdict of the gate: it was not judged."
    document = ResultDocument(f"{report.experiment}: {plan.run.candidate}", sections, verdict)
    card = ModelCard(f"---\n{head.to_yaml()}\n---\n\n{markdown(document)}")
    (folder / "README.md").write_text(str(card), "utf-8")
    return written


def _weights(plan: ExportPlan, license_name: str | None) -> Section:
    run, source = plan.run, plan.candidate.source
    base = Path(run.base_model).name if Path(run.base_model).is_absolute() else run.base_model
    prompting = plan.candidate.recipe.prompting
    written = {"params": source.params, "regularize": source.regularize, "prompting": prompting}
    settings = {key: value for key, value in written.items() if value}
    rows = [
        ("base", f"{base} ({run.base_digest})"),
        ("weights", f"{run.weights_digest}, merged in fp32, written in {plan.quantization}"),
        ("method", run.method),
        *((key, str(value)) for key, value in settings.items()),
        ("seed", str(run.seed)),
        ("run", run.run_id),
    ]
    notes = [*plan.notes, *([] if license_name else [_UNKNOWN_LICENSE])]
    return Section("weights", "Weights", ("made of", ""), rows, notes=notes)


def _rows(job: ExportJob) -> Section:
    session, name = job.session, job.plan.candidate.source_name
    trained = session.training.get(name, session.target)
    of_splits: list[tuple[MeasuredTask, Split]] = [(trained, "train"), (session.target, "validation")]
    of_splits += [(task, "test") for task in session.tasks]
    rows = [(f"{m.task.name}/{s}", str(m.size(s)), m.versions[s]) for m, s in of_splits if m.size(s)]
    return Section("rows", "Data", ("rows", "number", "digest"), rows)


def _prompts(job: ExportJob) -> Section:
    task, recipe = job.session.target.task, job.plan.candidate.recipe
    system = task.system if recipe.system is None else recipe.system
    limit = f"Measured on answers of at most {task.max_new_tokens} tokens; longer ones were not judged."
    rows = [
        ("system message", system or "none"),
        ("template", recipe.template or "none"),
        ("chat template", "that of the tokenizer" if task.chat_template else "none: plain text"),
    ]
    where = "The results below apply only to prompts and items like those of these tasks."
    return Section("prompts", "Prompts and limits", ("prompt", ""), rows, notes=[limit, where])


FORMAT = Format(bits=PRECISIONS, write=write, seconds=(10.0, 15.0))
