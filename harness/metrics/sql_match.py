"""Share of SQL answers that equal a reference once both are normalised: case, blanks, quotes, aliases' AS.

Invariant: nothing is run. What sqlglot cannot read is compared as text.
"""

import re
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from harness.errors import UserError
from harness.metrics import Metric, mean_metric
from harness.metrics._run_code import extract_fenced
from harness.records import Example, Output, fold_text
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build exact match of normalised SQL in [0, 1]; needs the package sqlglot."""
    try:
        import sqlglot
    except ImportError:
        where, step = f"task {task.name}: metric sql_match", "pip install 'harness-evals[sql]'"
        raise UserError(where, "no package sqlglot", "the parser of SQL", step) from None
    same = partial(_normalize, sqlglot)
    return replace(mean_metric("sql_match", partial(_matches, sqlglot)), same=same)


def _matches(sqlglot: Any, output: Output, example: Example) -> float:
    answer = _normalize(sqlglot, output.text)
    return float(any(answer == _normalize(sqlglot, reference) for reference in example.references))


@lru_cache(maxsize=4096)
def _normalize(sqlglot: Any, text: str) -> str:
    query = extract_fenced(text, re.compile("sql", re.IGNORECASE)).rstrip("; \n")
    try:
        found = sqlglot.parse_one(query)
    except Exception:  # noqa: BLE001 (what is not SQL fails to parse in as many ways as there are)
        return fold_text(query)
    for name in found.find_all(sqlglot.exp.Identifier):
        name.set("quoted", False)
        name.set("this", name.name.lower())
    return str(found.sql(comments=False))
