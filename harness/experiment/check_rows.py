"""Check of rows for a command: reading options, tokenizer, test rows, and scoring of answers."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import islice
from math import inf, log
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from harness.analysis.people_labels import count_enough_labels
from harness.data import ColumnCells, check, count_cells, find_mixed_columns, formats, readers
from harness.data.column_roles import QuestionAndAnswers, columns_of, option_text
from harness.data.contamination import open_encoder
from harness.data.examples import unusable_templates
from harness.data.row_traits import AnswerQuality, score_answers
from harness.errors import Problem, UserError, as_argument, did_you_mean, gather, refuse
from harness.evaluation.languages import classify
from harness.experiment.scaffold.recognition import Request, absolute, look
from harness.models import hub
from harness.progress import Progress, SilentProgress
from harness.records import Example, Message, Output, PromptText
from harness.report.findings import fill_commands, short_lines
from harness.spec import Fields, Task

_TASK = {"name": "rows", "data": {"invalid_rows": "drop"}}
_MOST_BRIEFLY = 2_000
_FIRST = 2_000  # rows from which columns and layout are recognised


class RowCheck(NamedTuple):
    """Files to check, test rows, columns, model; `pages` maps files to the option of their experiment."""

    files: Sequence[str]
    test: Sequence[str] = ()
    base: str | None = None
    prompt: str | None = None
    reference: str | None = None
    date: str | None = None
    only: Sequence[str] | None = None
    most: int = check.MOST_MODELLED
    embeddings: str | None = None
    date_format: str | None = None
    pages: Mapping[str, str] = MappingProxyType({})
    perplexity: bool = False
    judge: str | None = None


class CheckReport(NamedTuple):
    """Rows and the findings on them, worst first."""

    table: check.RowTable
    findings: tuple[check.Finding, ...]


class Brief(NamedTuple):
    """The worst findings, one line each, with their number, and the command that shows all."""

    lines: tuple[str, ...]
    command: str


def examine_rows(options: RowCheck, progress: Progress | None = None) -> CheckReport:
    """Read the files and run the checks."""
    if twice := readers.find_repeated(options.files):
        found, step = "a file that is named twice", "leave out all but one of them"
        raise UserError(", ".join(twice), found, "every file once", step)
    reading = test_reading = recognise(options, _read_first_rows([absolute(path) for path in options.files]))
    if options.test:
        first = _read_first_rows([absolute(path) for path in options.test])
        names, fields = first.names, reading.task.fields
        needed = {c for template in (fields.prompt, fields.reference) for c in columns_of(template, names)}
        is_alike = formats.layout_of(reading.task, first) is reading.layout
        if reading.task.kind != "bits_per_byte" and not (is_alike and (reading.layout or needed <= names)):
            test_reading = recognise(options._replace(files=options.test, prompt=None, reference=None), first)
        test_reading = test_reading._replace(date=reading.date if reading.date in names else None)
    return _examine(options, reading, test_reading, progress)


def _examine(
    options: RowCheck,
    reading: check.ReadingOptions,
    test_reading: check.ReadingOptions,
    progress: Progress | None,
) -> CheckReport:
    with (progress or SilentProgress()).stage(f"checking {', '.join(options.files)}") as advance:
        encode = open_encoder(options.embeddings, "--embeddings") if options.embeddings else None
        problems: list[Problem] = []
        tables: list[check.RowTable] = []
        for files, split, opts in ((options.files, "train", reading), (options.test, "test", test_reading)):
            with gather(problems):
                tables += [check.read_table(list(map(absolute, files)), opts, split)] if files else []
        refuse(problems)
        test = tables[1] if options.test else None
        tokenizer = tokenizer_of(options.base) if options.base else None
        scoring = AnswerScoring(
            options.base, perplexity=options.perplexity, judge=options.judge, progress=progress
        )
        context = check.CheckContext(test, tokenizer, options.most, encode, scoring.score, scoring.options)
        findings = check.check_rows(tables[0], context, options.only, advance)
    if scoring.ungraded:
        title = f"answers without a grade ({scoring.ungraded[0]})"
        meaning = "only their other traits are scored; attempts: in the rubric asks a judge again"
        n, n_ungraded = scoring.n_scored, len(scoring.ungraded)
        findings.insert(0, check.Finding("warning", title, meaning, check="quality", count=n_ungraded, of=n))
    elif scoring.options and not scoring.n_scored and "quality" in (options.only or check.MODULES):
        title = f"answers are not scored, so{scoring.options} has no effect"
        findings.append(check.Finding("note", title, "labels, or too few answers", check="quality"))
    columns, names = tables[0].columns, (reading.options, reading.columns)
    pages = {readers.display_path(absolute(path)): option for path, option in options.pages.items()}
    return CheckReport(tables[0], tuple(fill_commands(findings, tables[0].files, *names, columns, pages)))


def check_briefly(options: RowCheck, progress: Progress | None = None) -> Brief:
    """Describe the worst findings, one line each, and the command that shows all."""
    return _brief(options, examine_rows(options._replace(most=_MOST_BRIEFLY), progress))


def check_target(task: Task, progress: Progress | None = None) -> Brief | None:
    """Describe the worst findings of a task's training rows against its test rows; None without rows."""
    if not task.data.source("train"):
        return None
    return _brief(_target_check(task), examine_target(task, _MOST_BRIEFLY, progress=progress))


def _target_check(task: Task) -> RowCheck:
    fields, files = task.fields, [task.data.source("train") or ""]
    tested = [task.data.test] if task.data.test else []
    columns = option_text(fields.prompt, Fields().prompt), option_text(fields.reference, Fields().reference)
    return RowCheck(files, tested, prompt=columns[0], reference=columns[1], pages={files[0]: ""})


def examine_target(
    task: Task,
    max_modelled: int = check.MOST_MODELLED,
    embeddings: str | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a task's training rows, as the task reads them, against its test rows."""
    options = _target_check(task)._replace(most=max_modelled, embeddings=embeddings)
    files = (options.files, options.test or options.files)
    rows, tested = (_read_first_rows(list(map(absolute, paths))) for paths in files)
    layout, test_layout = formats.layout_of(task, rows), formats.layout_of(task, tested)
    reading = check.ReadingOptions(task, layout, prompt=options.prompt, reference=options.reference)
    return _examine(options, reading, reading._replace(layout=test_layout), progress)


def _brief(options: RowCheck, checked: CheckReport) -> Brief:
    words = list(map(as_argument, checked.table.files))
    words += ["--test", as_argument(readers.display_path(options.test[0]))] if options.test else []
    words += map(shlex.quote, checked.table.reading.options)
    return Brief(tuple(short_lines(checked.findings)), f"harness data check {' '.join(words)}")


def recognise(options: RowCheck, first: readers.Rows) -> check.ReadingOptions:
    """Recognise layout and columns from the first rows; rows of a single text become a bits_per_byte task."""
    column_options = {"prompt": options.prompt, "reference": options.reference}
    problems, expected = list[Problem](), "a column of the rows"
    for key, column in column_options.items():  # templates over columns need no check
        if column and "{" not in column and column not in first.names:
            hint = did_you_mean(column, first.names)
            problems.append(Problem(f"--{key}", f"the column {column!r}", expected, hint))
    cells: dict[str, ColumnCells] = {}
    for row in first.rows:
        count_cells(cells, row)
    refuse([*problems, *find_mixed_columns(cells)])
    request = Request(Path(), options.files[0], prompt=options.prompt, reference=options.reference)
    columns = first.names - {"id"}
    holds_objects = any(isinstance(row.fields.get(name), dict) for row in first.rows for name in columns)
    if len(columns) == 1 and not holds_objects and not formats.recognise(first.rows):
        fields = {"reference": f"{{{columns.pop()}}}"}
        task = Task.model_validate({**_TASK, "kind": "bits_per_byte", "fields": fields})
        refuse(unusable_templates(task.fields, first))
        return check.ReadingOptions(task)
    task = Task.model_validate({**_TASK, "fields": look(request, first).fields})
    named_as = options.date, options.prompt, options.reference, options.date_format
    return check.ReadingOptions(task, formats.layout_of(task, first), *named_as)


def _read_first_rows(paths: Sequence[str]) -> readers.Rows:
    """Read the first rows of the first non-empty file, without ids, which may repeat."""
    problems: list[Problem] = []
    for path in paths:
        try:
            rows = list(islice(readers.stream(path, "train"), _FIRST))
        except UserError as error:
            problems += error.problems
            continue
        if rows:
            fields = ({k: v for k, v in row.fields.items() if k != "id"} for row in rows)
            without = [row._replace(fields=kept) for row, kept in zip(rows, fields, strict=True)]
            return readers.Rows(readers.display_path(path), "row", without)
        problems.append(readers.phrase_no_rows(path, "add rows, or leave the file out"))
    raise UserError(problems)


def tokenizer_of(base: str) -> check.Tokenizer:
    """Return the tokenizer of a base and its context length in tokens."""
    source = hub.resolve(base, where="--base")
    special = tuple(hub.list_special_tokens(source))
    return check.Tokenizer(base, hub.context_length(source), hub.token_counter(source), special)


class AnswerScoring:
    """Scores answers by their traits, with `perplexity` also under the base, with `judge` also by grades.

    `judge` is the path of a harness.yaml (`RowJudge`). `n_scored` counts the answers so far; `ungraded` holds
    why some have no grade.
    """

    def __init__(
        self, base: str | None, *, perplexity: bool, judge: str | None, progress: Progress | None = None
    ) -> None:
        if perplexity and base is None:
            raise UserError("--perplexity", "no model", "a model under which to score", "--base MODEL")
        self._source = hub.resolve(base, where="--base") if perplexity and base else None
        self._judge = None if judge is None else RowJudge(judge, progress or SilentProgress())
        self.n_scored, self.ungraded = 0, list[str]()
        model = f" --perplexity --base {as_argument(base)}" if perplexity and base else ""
        self.options = model + (f" --judge {as_argument(judge)}" if judge else "")

    def score(self, rows: Sequence[QuestionAndAnswers]) -> list[AnswerQuality]:
        """Score the first answer of each row."""
        self.n_scored += len(rows)
        bits = list[float | None]()  # per byte of each answer given its question; None beyond the context
        if self._source:
            from harness.models.hardware import probe
            from harness.models.hf import ModelHost

            base = ModelHost(self._source, probe("auto", "auto", hub.shape(self._source))).base
            has_template = base.tokenizer.chat_template is not None
            questions = [({"role": "user", "content": _prompt(row)},) for row in rows]
            texts = zip(questions, rows, strict=True)
            encoded = base.encode_all([PromptText(q, row.answers[0], has_template) for q, row in texts])
            sizes = [len(e.context) + len(e.continuation) if e.continuation else inf for e in encoded]
            fitting = [i for i, size in enumerate(sizes) if size <= base.max_context]
            scored = base.loglikelihood([(encoded[i].context, encoded[i].continuation) for i in fitting])
            nats = dict(zip(fitting, (score.logprob for score in scored), strict=True))
            n_bytes = [len(row.answers[0].encode()) for row in rows]
            bits = [-nats[i] / log(2) / n if i in nats and n else None for i, n in enumerate(n_bytes)]
        grades, reasons = self._judge.grade(rows) if self._judge else ([], [])
        self.ungraded += reasons
        return score_answers(rows, classify, bits, grades)


class RowJudge:
    """Judge by the first metric of an experiment's target that shows no reference and no passages.

    Stored grades are read, new ones stored. Raises UserError if the judge cannot grade rows, or if people
    did not check it.
    """

    def __init__(self, path: str, progress: Progress) -> None:
        from harness import config
        from harness.evaluation.judges import key_problems
        from harness.experiment.preparation import Scope, prepare_session
        from harness.experiment.study import judge_labels

        where, written = f"--judge {path}", as_argument(path)
        if Path(path).is_dir():
            step = f"--judge {as_argument(f'{path}/harness.yaml')}"
            raise UserError(where, "a folder", "a harness.yaml", step)
        session = self._session = prepare_session(config.load(Path(path)), Scope(), progress)
        task = session.target.task
        rubrics = {name: judged.rubric for name, judged in session.target.judged.items()}
        able = [name for name, rubric in rubrics.items() if not (rubric.needs_references or rubric.passages)]
        if not able:
            expected = f"one of the target {task.name} that needs no reference and no passages"
            raise UserError(where, "no judged metric for rows", expected, "metrics: [judge:./FILE.yaml]")
        judged = self._judged = session.target.judged[able[0]]
        refuse([*key_problems([judged])])
        if absent := [judge for judge in judged.judges if judge.absent]:
            step = f"harness train {as_argument(absent[0].name)} -c {written}"
            raise UserError(where, f"{judged.metric}: {absent[0].absent}", "a judge that is trained", step)
        n_labels = len(judge_labels(session.store, task, judged.metric))
        n_needed = count_enough_labels(len(session.target.items.test))
        if n_labels < n_needed and session.experiment.gate.uncalibrated_judge == "refuse":
            found = f"people's labels of {n_labels} answers that {judged.metric} graded"
            step = f"harness rate export labels.csv -c {written}"
            step += ", or gate: {uncalibrated_judge: allow} there"
            raise UserError(where, found, f"at least {n_needed}, which show how well it grades", step)

    def grade(self, rows: Sequence[QuestionAndAnswers]) -> tuple[list[float | None], list[str]]:
        """Return the grades of the first answers in [0, 1], None where there is none, and why."""
        from harness.evaluation.judges import GRADED_ROWS, GradeReader
        from harness.evaluation.stored_scores import grade_answers

        items = []
        for n, row in enumerate(rows):
            question: Message = {"role": "user", "content": _prompt(row)}
            system: Message = {"role": "system", "content": row.system}
            items.append(Example(f"row {n}", (system, question) if row.system else (question,)))
        outputs, name = [Output(row.answers[0]) for row in rows], self._judged.metric

        def read_grades() -> tuple[GradeReader, list[float | None]]:
            reader = GradeReader(GRADED_ROWS, {name: self._judged}, items)
            score = reader.bind(self._session.target.metrics)[name].score
            parts = (score(output, item) for output, item in zip(outputs, items, strict=True))
            return reader, [part[0] if part else None for part in parts]

        reader, grades = read_grades()
        if reader.ungraded:
            grade_answers(self._session, reader.ungraded)
            reader, grades = read_grades()
        reasons = [reason_by_metric[name] for reason_by_metric in reader.unreadable.values()]
        return grades, reasons + ["no grade came"] * len({answer.example.id for answer in reader.ungraded})


def _prompt(row: QuestionAndAnswers) -> str:
    return "\n\n".join(filter(None, (row.context, row.question)))
