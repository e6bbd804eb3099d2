"""Report of a rescue as a table, Markdown, plain types and a plot of the Pareto front.

Invariant: every form shows the same numbers; forgetting is that of the search half for every trial,
so that they can be compared.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from glob import escape as escaped
from pathlib import Path
from typing import Any, NamedTuple

from harness import formatting, report
from harness.decision import Decision
from harness.records import parse_json
from harness.report import (
    WORDS,
    ExperimentReport,
    ResultDocument,
    Section,
    restore,
    target_text,
    targets_section,
    verdict_word,
)
from harness.rescue.result import HalfVerdict, Rescue, TrialResult
from harness.spec import Recipe


class TrialRow(NamedTuple):
    """One trial's cells."""

    trial: str
    target: str
    forgetting: str
    lost_gained: str
    on_front: str
    search: str
    confirm: str


def headers(rescue: Rescue) -> TrialRow:
    """Name the columns."""
    target = f"target {rescue.metric}"
    return TrialRow("trial", target, "other skills", "lost/gained", "front", "search half", "other half")


def rows(rescue: Rescue) -> list[TrialRow]:
    """List the run and its trials best first: the rescued one, then the Pareto front, by target score."""
    front = rescue.front

    def key(t: TrialResult) -> tuple[bool, bool, bool, float]:
        score = t.facts.target.unit.sign * t.facts.target.score if t.facts.target else 0.0
        return t.name != rescue.rescued_trial, t.search is None, t.name not in front, -score

    return [_row(t, front) for t in sorted((rescue.original, *rescue.tried), key=key)]


def sentences(rescue: Rescue) -> list[str]:
    """List what is said under the table, the sum of it last."""
    judged = [(t, half) for t in rescue.tried for half in (t.search, t.confirm) if half]
    return [
        f"forgetting is that of the search half ({_search_items(rescue)}); the other half is evaluated once",
        *(f"{t.name}: {half.sentence}" for t, half in judged),
        *(f"{t.name} failed: {t.facts.error}" for t in rescue.tried if t.facts.state == "failed"),
        *rescue.notes,
        *(f"not tried: {reason}" for reason in rescue.left_out),
        *_yaml_lines(rescue),
        rescue.sentence,
    ]


def rescue_document(rescue: Rescue) -> ResultDocument:
    """Lay a rescue out: the table, its sentences, and the sum of it last."""
    *notes, last = sentences(rescue)
    title = f"Rescue of {rescue.candidate} in {rescue.experiment}"
    trials = Section("trials", columns=headers(rescue), rows=rows(rescue), notes=notes)
    done = [t.facts for t in (rescue.original, *rescue.tried) if t.facts.state == "done"]
    more = replace(targets_section(done), lead="")
    return ResultDocument(title, [trials, *([more] if more.rows else [])], last)


def to_json(rescue: Rescue) -> dict[str, Any]:
    """Turn a rescue into plain types, with what follows from its fields."""
    plain: dict[str, Any] = report.to_plain(rescue)
    summed = {"rescued": rescue.rescued_trial, "front": list(rescue.front), "sentence": rescue.sentence}
    return {**summed, **plain}


def report_files(folder: Path, experiment: str) -> list[Path]:
    """List the files that hold the last rescue of each run of an experiment as plain types."""
    return sorted(folder.glob(f"{escaped(experiment)}.rescue-*.json"))


def read(path: Path) -> Rescue | None:
    """Read a rescue back from the JSON that was written of it; None where the file holds none."""
    try:
        found: Rescue = restore(Rescue, parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found


def front_file(rescue: Rescue) -> str:
    """Draw gain against what is kept, the rescued one with a ring; empty where nothing was judged."""
    facts = tuple(
        replace(t.facts, verdict=t.search.verdict) for t in (rescue.original, *rescue.tried) if t.search
    )
    decision = Decision("fine-tune", rescue.rescued_trial, rescue.sentence, (), {}, ())
    drawn = ExperimentReport(
        rescue.experiment,
        rescue.base_model,
        rescue.metric,
        facts,
        decision=decision,
        macro_margin=rescue.macro_margin,
    )
    return report.front_file(drawn)


def write(rescue: Rescue, folder: Path) -> list[Path]:
    """Write Markdown, JSON and the picture beside the reports; returns what was written."""
    stem = f"{rescue.experiment}.rescue-{rescue.candidate}" + (f"-s{rescue.seed}" if rescue.seed else "")
    forms = {
        ".md": report.markdown(rescue_document(rescue)),
        ".json": json.dumps(to_json(rescue), indent=2, ensure_ascii=False) + "\n",
        ".front.svg": front_file(rescue),
    }
    return report.write_forms(folder, stem, forms)


def _row(t: TrialResult, front: Sequence[str]) -> TrialRow:
    v = t.search.verdict if t.search else None
    kept = t.capability_change
    return TrialRow(
        t.name,
        target_text(t.facts),
        formatting.points(*kept[:3]) if kept else formatting.UNKNOWN,
        f"{formatting.count(v.lost)}/{formatting.count(v.gained)}" if v else formatting.UNKNOWN,
        "yes" if t.name in front else "",
        _word(t.search) if t.facts.state == "done" else verdict_word(t.facts),
        _word(t.confirm),
    )


def _word(half: HalfVerdict | None) -> str:
    if half is None:
        return formatting.UNKNOWN
    return WORDS[half.verdict.outcome] if half.keeps_gains else "NO GAIN"


def _search_items(rescue: Rescue) -> str:
    seen = rescue.original.search
    if seen is None:
        return formatting.UNKNOWN
    return f"{formatting.count(seen.n_items)} of {formatting.count(seen.n_all)} items, by cluster"


def _yaml_lines(rescue: Rescue) -> Iterator[str]:
    """Write down the rescued recipes as harness.yaml takes them."""
    found = next((t for t in rescue.tried if t.name == rescue.rescued_trial), None)
    if found is None:
        return
    yield "to keep it, add to candidates: in the file (nothing is computed again):"
    named = {name: _candidate_name(name) for name in found.recipes}
    for name, recipe in found.recipes.items():
        kept = _plain_recipe(recipe)
        if kept.get("weights_of") in named:
            kept["weights_of"] = named[kept["weights_of"]]
        yield f"  {named[name]}: {json.dumps(kept, ensure_ascii=False)}"


def _candidate_name(name: str) -> str:
    """Return a name for the file: of the candidate, without the signs that only a grid's names have."""
    return re.sub(r"[^A-Za-z0-9_.\-]+", "-", name.partition("+")[0]).strip("-") + "-rescued"


def _plain_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = Recipe.model_validate(recipe).model_dump(mode="json", exclude_defaults=True)
    return kept
