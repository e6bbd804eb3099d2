"""Share of SQL answers that find the rows which a reference finds, run on the item's SQLite database.

Invariant: queries run isolated on a copy in memory, and only with `HARNESS_ALLOW_CODE_EXECUTION=1`. The order
of rows counts if a reference sorts them; columns' names never do. A reference that fails is refused.
Source: execution accuracy, Yu et al. 2018 (Spider), arXiv:1809.08887.
"""

import re
import sqlite3
from contextlib import closing
from functools import lru_cache
from pathlib import Path

from harness.errors import UserError, refuse
from harness.formatting import quote
from harness.metrics import Metric, mean_metric
from harness.metrics._run_code import extract_fenced, passes, problems
from harness.records import Example, Output
from harness.spec import Task

__all__ = ["metric", "problems"]

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


def metric(task: Task) -> Metric:
    """Build execution accuracy in [0, 1]; items without a database are not scored."""
    return mean_metric("sql_execution", _score)


def _score(output: Output, example: Example) -> float | None:
    databases = [one for one in example.constraints if one.get("kind") == "sqlite"]
    if not databases:
        return None
    refuse(problems("metric sql_execution"))
    named = databases[0]
    script = str(named.get("schema") or _dump(str(named.get("database", "")), example.id))
    answer = extract_fenced(output.text, re.compile("sql(?:ite)?", re.IGNORECASE))
    for reference in example.references:
        if not _finds_the_same(reference, reference, script):
            where = f"metric sql_execution: the reference of item {example.id}"
            found, step = f"a query that fails on its database: {quote(reference)}", "correct one of both"
            raise UserError(where, found, "a query that runs", step)
    return float(any(_finds_the_same(answer, reference, script) for reference in example.references))


def _finds_the_same(answer: str, reference: str, script: str) -> bool:
    given = {"script": script, "reference": reference, "answer": answer}
    return passes("", _PROGRAM.format(**given, ordered=bool(_ORDERED.search(reference))))


@lru_cache(maxsize=32)
def _dump(database: str, item: str) -> str:
    if not Path(database).is_file():
        where, step = f"metric sql_execution: item {item}", "correct the path, from where harness runs"
        raise UserError(where, f"no database {database!r}", "a file of SQLite", step)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
        return "\n".join(opened.iterdump())
