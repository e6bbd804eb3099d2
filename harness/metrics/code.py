"""Metrics of answers that are code: Python's tests, and SQL by its rows or its text.

Invariant: code runs only isolated (`_run_code`), and only with `HARNESS_ALLOW_CODE_EXECUTION=1`. Nothing is
scored if the isolation fails.
"""

import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from harness.errors import UserError, refuse
from harness.formatting import quote
from harness.metrics import Metric, mean_metric
from harness.metrics._run_code import extract_fenced, passes
from harness.metrics._run_code import problems as isolation_problems
from harness.records import Example, Output, fold_text
from harness.spec import Task

_PYTHON = re.compile(r"\{?\.?py(?:thon)?[\d.]*\}?", re.IGNORECASE)


def extract_code(text: str) -> str:
    """Return the code of an answer: its first fenced block of Python, else of no language, or all of it."""
    return extract_fenced(text, _PYTHON)


class CodeTests:
    """Share of answers whose code passes the tests of a reference, run without network, files or rights.

    Tests have passed only if they are seen to finish, with the original builtins. The tests make the
    comparisons, so an answer that returns objects equal to everything passes unless they check types.
    Source: functional correctness by Chen et al. 2021, arXiv:2107.03374.
    """

    problems = isolation_problems

    @staticmethod
    def _score(output: Output, example: Example) -> float | None:
        refuse(isolation_problems("metric code_tests"))
        tests = [reference for reference in example.references if reference.strip()]
        for test in tests:
            if passes("", test):  # tests nothing, so it would pass any code
                where = f"metric code_tests: the reference of item {example.id}"
                step = "call what it defines, as check(add) behind HumanEval's def check(candidate)"
                found = "tests that pass without any code"
                raise UserError(where, found, "an assert, a function test_… or a class of tests", step)
        return float(any(passes(extract_code(output.text), test) for test in tests)) if tests else None

    metric = replace(mean_metric("code_tests", _score), same=extract_code)


_ORDERED = re.compile(r"\border\s+by\b", re.IGNORECASE)
_PROGRAM = """
import sqlite3
database = sqlite3.connect(":memory:")
database.executescript({script!r})
wanted = list(map(repr, database.execute({reference!r}).fetchall()))
found = list(map(repr, database.execute({answer!r}).fetchall()))
if not {ordered}:
    wanted, found = sorted(wanted), sorted(found)
assert found == wanted
"""


def _finds_the_same(answer: str, reference: str, script: str) -> bool:
    texts = {"script": script, "reference": reference, "answer": answer}
    return passes("", _PROGRAM.format(**texts, ordered=bool(_ORDERED.search(reference))))


@lru_cache(maxsize=32)
def _dump(database: str, item: str) -> str:
    if not Path(database).is_file():
        where, step = f"metric sql_execution: item {item}", "correct the path, from where harness runs"
        raise UserError(where, f"no database {database!r}", "a file of SQLite", step)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        return "\n".join(opened.iterdump())


class SqlExecution:
    """Share of SQL answers that find the rows which a reference finds, run on the item's SQLite database.

    Queries run on a copy in memory; items without a database are not scored. The order of rows counts if a
    reference sorts them; columns' names never do. A reference that fails is refused.
    Source: execution accuracy, Yu et al. 2018 (Spider), arXiv:1809.08887.
    """

    problems = isolation_problems

    @staticmethod
    def _score(output: Output, example: Example) -> float | None:
        databases = [c for c in example.constraints if c.get("kind") == "sqlite"]
        if not databases:
            return None
        refuse(isolation_problems("metric sql_execution"))
        database = databases[0]
        script = str(database.get("schema") or _dump(str(database.get("database", "")), example.id))
        answer = extract_fenced(output.text, re.compile("sql(?:ite)?", re.IGNORECASE))
        for reference in example.references:
            if not _finds_the_same(reference, reference, script):
                where = f"metric sql_execution: the reference of item {example.id}"
                found, step = f"a query that fails on its database: {quote(reference)}", "correct one of both"
                raise UserError(where, found, "a query that runs", step)
        return float(any(_finds_the_same(answer, reference, script) for reference in example.references))

    metric = mean_metric("sql_execution", _score)


class SqlMatch:
    """Share of SQL answers that equal a reference once normalised: case, blanks, quotes, aliases' AS.

    Nothing is run. What sqlglot cannot read is compared as text.
    """

    @staticmethod
    def metric(task: Task) -> Metric:
        """Build exact match of normalised SQL in [0, 1]; needs the package sqlglot."""
        try:
            import sqlglot
        except ImportError:
            where, step = f"task {task.name}: metric sql_match", "pip install 'harness-evals[sql]'"
            raise UserError(where, "no package sqlglot", "the parser of SQL", step) from None

        @lru_cache(maxsize=4096)
        def normalize_query(text: str) -> str:
            query = extract_fenced(text, re.compile("sql", re.IGNORECASE)).rstrip("; \n")
            try:
                statement = sqlglot.parse_one(query)
            except Exception:  # noqa: BLE001 (what is not SQL fails to parse in as many ways as there are)
                return fold_text(query)
            for name in statement.find_all(sqlglot.exp.Identifier):
                name.set("quoted", False)
                name.set("this", name.name.lower())
            return str(statement.sql(comments=False))

        def matches(output: Output, example: Example) -> float:
            return float(normalize_query(output.text) in set(map(normalize_query, example.references)))

        return replace(mean_metric("sql_match", matches), same=normalize_query)


PLUGINS = {"code_tests": CodeTests, "sql_execution": SqlExecution, "sql_match": SqlMatch}
