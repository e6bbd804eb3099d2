"""Commands before a comparison: init writes an experiment for rows, doctor and data check look for faults.

Invariant: only the A/A noise computes anything, on request; no file of the user is changed.
"""

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.app import EXPERIMENT, app, data_app, print_result, say
from harness.cli.options import (
    CONFIG,
    Argument,
    Config,
    ExperimentFile,
    Json,
    Option,
    Precision,
    RowColumns,
    config_option,
    verb,
)
from harness.errors import UserError
from harness.formatting import UNKNOWN, count, percent, plain, pluralize, seconds, usd

if TYPE_CHECKING:
    from harness.experiment.bases import BaseFit
    from harness.experiment.cost_estimates import Cost
    from harness.report import ResultDocument


@verb(
    app,
    "tickets --data tickets.csv",
    "faq --data faq.jsonl --documents manual.jsonl",
    "chat --data hub:owner/name --base-model Qwen/Qwen2.5-0.5B-Instruct",
    heading=EXPERIMENT,
)
def init(
    folder: Annotated[Path, Argument("Where to write; a file is taken for --data.", "DIR")] = Path(),
    data: Annotated[str | None, Option("Your rows, or hub:owner/name; else an example.", env=True)] = None,
    task: Annotated[
        Literal["labels", "choice", "question", "preference", "text"] | None,
        Option("The kind of task, if guessed wrong."),
    ] = None,
    base_model: Annotated[str, Option("A hub id, a folder, or the embedded one.", env=True)] = "smollm2-135m",
    pairs: Annotated[str | None, Option("A file of preference pairs.", env=True)] = None,
    documents: Annotated[str | None, Option("A file of documents to retrieve from.", env=True)] = None,
    *,
    columns: RowColumns,
    instruction: Annotated[str | None, Option("The system text to ask with, instead of a draft.")] = None,
    minutes: Annotated[float, Option("Longest estimated time of compare here.", env=True, min=0.1)] = 20.0,
    as_json: Json = False,
) -> None:
    """Write an experiment for your rows that runs as it is.

    Without --data it writes a small example to edit. It never overwrites a file.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment import scaffold

    if folder.is_file() and data is None:  # the argument is a file of rows
        folder, data = Path(), str(folder)
    rows = data or str(scaffold.write_example(folder))
    asked = scaffold.Request(folder, rows, base_model, pairs, documents, *columns, task, minutes, instruction)
    progress = TerminalProgress()
    with progress.stage(f"reading {rows}"):
        proposal = scaffold.propose(asked)
    if data:
        from harness.experiment.check_rows import RowCheck, check_briefly

        try:
            options = RowCheck([rows], prompt=columns.prompt, reference=columns.reference)
            brief = check_briefly(options, progress)
            say(*(f"data: {line}" for line in (*brief.lines, f"the whole page: {brief.command}")))
        except UserError as error:
            say(*(f"data: {problem}" for problem in error.problems))
    written = [*([] if data else [rows]), *map(str, scaffold.write(proposal))]
    say(*proposal.warnings)
    plain: dict[str, object] = {"task": proposal.kind, "metrics": proposal.task.metrics}
    plain |= {"candidates": list(proposal.candidates), "said": proposal.lines, "files": written}
    command = f"harness compare{config_option(folder / 'harness.yaml')}"
    step = f"next: {command} --dry-run estimates tokens and time; {command} runs it"
    print_result(plain, [*proposal.lines, f"wrote {' and '.join(written)}", step], as_json)


@verb(app, "", "--noise", "--base Qwen/Qwen3-8B --gpu 24GB", heading=EXPERIMENT)
def doctor(
    at: ExperimentFile,
    noise: Annotated[bool, Option("Count the base's answers that flip in other batches.", env=True)] = False,
    embeddings: Annotated[str, Option("A sentence-transformers model to find contamination.", env=True)] = "",
    base: Annotated[str, Option("Say what fits a card of this base: a folder or a hub id.")] = "",
    gpu: Annotated[str, Option("With --base: memory of the card, such as 24GB.")] = "",
    gpus: Annotated[int, Option("With --base: such cards, which share a training.", min=1)] = 1,
    length: Annotated[int, Option("With --base: tokens of a row.", min=1)] = 2048,
    batch: Annotated[int, Option("With --base: rows of a batch.", min=1)] = 4,
    tokens: Annotated[float, Option("With --base: training tokens in all epochs.", min=0)] = 1e6,
    tflops: Annotated[float, Option("With --base: the card's speed in 16 bits, dense.", min=1)] = 100.0,
    hour_usd: Annotated[float | None, Option("With --base: price of the card an hour.", min=0)] = None,
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Check machine, packages, model and data; estimate the cost.

    With `--base` and `--gpu` it reports which ways to train and serve the base fit the card, how long a
    training takes and what it costs; no weights are read.
    """
    if base or gpu:
        from harness.experiment.bases import FitQuery, examine_base
        from harness.report import to_plain

        query = FitQuery(gigabytes(gpu), length, batch, precision or "bf16", tokens, tflops, hour_usd, gpus)
        if not base:
            raise UserError("--base", "nothing", "a folder or a hub id", "--base Qwen/Qwen3-8B")
        fit = examine_base(base, query)
        print_result(to_plain(fit), base_document(fit), as_json)
        return
    at = at.override({"precision": precision})
    if noise:
        _measure_noise(at, as_json)
        return
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment.checkup import examine
    from harness.models.hardware import describe_speed, probe_notes
    from harness.report import ResultDocument, Section, to_plain

    checkup = examine(at.config, at.settings, TerminalProgress(), embeddings)
    machine, room = checkup.machine, checkup.memory
    versions = ", ".join(f"{name} {v or 'missing'}" for name, v in checkup.packages.items())
    slow = f"; {remark}" if (remark := probe_notes(machine)) else ""
    rows = [
        ("machine", f"{machine.name}; {machine.precision}, {describe_speed(machine.gflops)}{slow}"),
        ("memory", f"{room.free_gib:.1f} of {room.total_gib:.1f} GiB free ({room.of})"),
        ("disk", f"{checkup.disk_free_gb:,.0f} GB free"),
        ("packages", versions),
        *(("", f"missing: {name}, {how}") for name, how in checkup.absent.items()),
        *([("vLLM", checkup.vllm)] if checkup.vllm else []),
        *(("found", line) for line in checkup.experiment),
        *(("data", line) for line in (checkup.data.lines if checkup.data else ())),
    ]
    estimated = []
    for cost in checkup.costs:
        gib, fits = memory_texts(cost)
        operations = f"{cost.flops:.1e}" if cost.flops else "few"
        estimated.append((cost.candidate, gib, seconds(cost.time_s), operations, usd(cost.cost_usd), fits))
    columns = ("candidate", "memory GiB", "time", "operations", "cost USD", "fits")
    knobs = [f"{cost.candidate} does not fit; try {cost.knob}" for cost in checkup.costs if cost.knob]
    lead = "estimated, each made alone and from nothing"
    costs = Section(columns=columns, rows=estimated, lead=lead, notes=knobs)
    sections = [Section(rows=rows), *([costs] if estimated else [])]
    print_result(to_plain(checkup), ResultDocument("", sections, ""), as_json)
    if checkup.data:
        say(f"all of the data's findings: {checkup.data.command}")
    say(*checkup.recipes, *checkup.judges)
    say(*(f"error: {problem}" for problem in checkup.problems))
    options = "".join(f" {shlex.quote(setting)}" for setting in at.settings) + config_option(at.config)
    step = f"fix that, then harness doctor{options}" if checkup.problems else f"harness compare{options}"
    say(f"next: {step}")
    raise typer.Exit(2 if checkup.problems else 0)


def gigabytes(written: str) -> float:
    """Read a card's memory in GB, 1e9 bytes, from `24GB`, `24` or `24GiB`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB|G)?", written, re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError("--gpu", written or "nothing", "the memory of one card", "--gpu 24GB")
    return float(match[1]) * (2**30 / 1e9 if (match[2] or "").lower() == "gib" else 1)


_SHARED = "GB on each of {} cards, which share rows and time evenly, communication not counted"


def base_document(fit: "BaseFit") -> "ResultDocument":
    """Tabulate memory, time and cost of each use of a base, and name those that fit."""
    from harness.evaluation.costs import TRAIN_SHARE
    from harness.models.memory import Peak
    from harness.report import ResultDocument, Section

    query = fit.asked
    rows = [
        (
            f"{use.name}, checkpointing" if use.checkpointing else use.name,
            *(f"{gb:.1f}" for gb in (*use.peak, use.peak.total)),
            "yes" if use.fits else "no",
            seconds(use.time_s),
            usd(use.cost_usd),
        )
        for use in fit.ways
    ]
    passed = "" if fit.active == fit.n_parameters else f"; {_millions(fit.active)} are active per token"
    lead = (
        f"{fit.name}: {_millions(fit.n_parameters)} parameters{passed}; {query.batch} rows of "
        f"{count(query.length)} tokens in {query.precision}; GB at the peak"
    )
    share = percent(TRAIN_SHARE)
    notes = [
        f"time of {count(query.tokens)} training tokens, if they reach {share} % of {query.tflops:g} TFLOP/s",
        *([_SHARED.format(query.gpus)] if query.gpus > 1 else []),
        *dict.fromkeys(f"{use.name}: {use.why_not}" for use in fit.ways if use.why_not),
        *fit.notes,
        *(f"proposed: {proposal}" for proposal in fit.proposed),
    ]
    columns = ("method", *Peak._fields, "in all", "fits", "time", "cost USD")
    fitting = list(dict.fromkeys(use.name for use in fit.ways if use.fits))
    cards = f"{query.gpus} × " if query.gpus > 1 else ""
    last = f"{cards}{query.gpu_gb:.4g} GB are enough for {', '.join(fitting) or 'none of these'}"
    return ResultDocument("", [Section(columns=columns, rows=rows, lead=lead, notes=notes)], last)


def _millions(n: float) -> str:
    return f"{n / 1e6:,.0f} million" if n >= 5e5 else count(n)


def _measure_noise(at: ExperimentFile, as_json: bool) -> None:
    from dataclasses import asdict

    from harness.evaluation.control_arm import measure_noise

    session, _ = at.open_session()
    noise = measure_noise(session)
    from harness.report import ResultDocument, Section

    arms = list(dict.fromkeys(arm for task in noise.tasks for arm in task.flips))
    columns = ("task", "items", *(f"other {arm}" for arm in arms), "largest difference, nats")
    rows = [
        (t.task, count(t.n), *map(count, map(t.flips.get, arms)), plain(t.largest_nats)) for t in noise.tasks
    ]
    share = percent(noise.flips / noise.n) if noise.n else UNKNOWN
    flipped = f"{count(noise.flips)} of {count(noise.n)} answers flipped ({share} %)"
    last = f"{flipped}, {noise.precision}, {noise.device}"
    document = ResultDocument("", [Section(columns=columns, rows=rows)], last)
    print_result({**asdict(noise), "flips": noise.flips, "n": noise.n}, document, as_json)
    say(f"stored in {session.store.folder / 'noise'}")


def memory_texts(cost: "Cost") -> tuple[str, str]:
    """Format a candidate's memory, and whether it fits."""
    gib = UNKNOWN if cost.memory_gib is None else f"{cost.memory_gib:.1f}"
    return gib, {True: "yes", False: "no", None: UNKNOWN}[cost.fits]


@verb(data_app, "tickets.csv", "train.jsonl --test test.jsonl --html check.html")
def data_check(
    files: Annotated[list[str], Argument("Rows: files, or hub:owner/name.", "FILE...")],
    test: Annotated[list[str] | None, Option("Rows to test on, for contamination and likeness.")] = None,
    base: Annotated[str | None, Option("Count tokens by this model; else by `base_model`.")] = None,
    *,
    columns: RowColumns,
    date: Annotated[str | None, Option("The column of a row's date, for freshness.")] = None,
    date_format: Annotated[str | None, Option("The form of the dates, such as %d.%m.%Y.")] = None,
    embeddings: Annotated[str | None, Option("A sentence-transformers model to find duplicates.")] = None,
    perplexity: Annotated[bool, Option("Score answers also by the base's perplexity.")] = False,
    judge: Annotated[str | None, Option("The harness.yaml whose judge also scores answers.")] = None,
    html: Annotated[Path | None, Option("Write the page as one file of HTML.")] = None,
    fail_on: Annotated[Literal["error", "warning"] | None, Option("End with 1 at such a finding.")] = None,
    config: Config = CONFIG,
    as_json: Json = False,
) -> None:
    """Find duplicates, contamination, wrong labels, damage.

    The worst stands first, each with the command that fixes it. Nothing is changed.
    """
    from harness.cli.progress_bar import TerminalProgress
    from harness.experiment.check_rows import RowCheck, examine_rows
    from harness.report.findings import data_document, data_html, data_json, refuse_page

    if html:
        refuse_page(html)
    is_there = config != CONFIG or config.is_file()
    experiment = ExperimentFile(config=config).load().experiment if is_there else None
    train = experiment.target.data.source("train") if experiment else None
    options = RowCheck(
        files,
        tuple(test or ()),
        base or (experiment.base_model if experiment else None),
        *columns,
        date,
        embeddings=embeddings,
        date_format=date_format,
        pages={train: config_option(config)} if train else {},
        perplexity=perplexity,
        judge=judge,
    )
    table, findings = examine_rows(options, TerminalProgress())
    title = f"Data check of {', '.join(table.files)}: {pluralize(table.n, 'row')}"
    if html:
        html.write_text(data_html(findings, title), encoding="utf-8")
        say(f"wrote {html}")
    print_result(data_json(findings, table.files, table.n), data_document(findings, title), as_json)
    alarming = {"error": ("error",), "warning": ("error", "warning"), None: ()}[fail_on]
    raise typer.Exit(1 if any(f.severity in alarming for f in findings) else 0)
