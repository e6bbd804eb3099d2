"""The page of the study of planted faults: tables of what the run gave, and nothing that it did not."""

from collections.abc import Mapping, Sequence
from typing import Any

from statsmodels.stats.proportion import proportion_confint

from harness import formatting
from harness.data.near_duplicates import THRESHOLD
from harness.data.contamination import EIGHT_GRAMS, EMBEDDINGS, WORDS_IN_COMMON

KINDS = {
    "paraphrase": "paraphrases by hand",
    "slips of the pen": "test items with slips",
    "in a greeting": "test items in a greeting",
    "in a greeting, with slips": "the same with slips",
    "different": "look-alikes of another sense (false alarms)",
    "rows of the set": "rows of the set that nobody planted",
}


def page(results: Mapping[str, Any], read: Mapping[str, Any]) -> str:
    """Lay out the page."""
    sets = results["sets"]
    return "\n".join(
        [
            "# What the data check finds",
            "",
            *_introduction(sets),
            "## Faults in rows",
            "",
            *_faults(sets),
            "## The rows as they were",
            "",
            *_list_clean_sets(sets),
            *_read(sets, read),
            "## Leaks in other words",
            "",
            *_leaks(sets),
            *_trade_off(results.get("trade_off", [])),
            *_repeats(sets),
        ]
    )


def rate(hits: int, n: int) -> str:
    """Print a share with its Wilson interval, in percent, and its counts."""
    if not n:
        return formatting.UNKNOWN
    low, high = proportion_confint(hits, n, method="wilson")
    return f"{formatting.interval(hits / n, low, high)} ({hits:,} of {n:,})"


def _introduction(sets: Mapping[str, Any]) -> list[str]:
    sizes = ", ".join(f"{name} ({one['n']:,} rows)" for name, one in sets.items())
    faults = (
        f"Faults of known places were planted into rows of three sets: {sizes}. `harness data check` looked at them, and the leak"
        " measures at training against test rows. Shares are in percent with 95 % Wilson intervals; planted faults are"
        " drawn independently, so an interval holds for faults of this making and for nothing else. Made by"
        " `python -m reports.studies.data_check`, whose docstring says what was planted and how."
    )
    thresholds = (
        f"No threshold was chosen on what is judged here: near duplicates are rows with a Jaccard index of"
        f" {THRESHOLD} or more, set before the first run; the leak measures' {WORDS_IN_COMMON} and {EMBEDDINGS} come"
        f" from the pairs by hand with an odd number, and {EIGHT_GRAMS} from PaLM. The pairs that judge have even"
        " numbers. Four rules are no threshold and were not chosen blindly: that rows whose answers differ are no duplicates, and that rows of a series, in which four or more"
        " differ in one word, are not alike, came after the findings in Dolly had been read, where a row may be cut for words"
        " in a part after such pairs of Dolly and Banking77 had been read, and when suspect labels raise an alarm was chosen on small draws of Banking77 and of the generator."
    )
    return [faults, "", thresholds, ""]


def _faults(sets: Mapping[str, Any]) -> list[str]:
    lines = _head(
        "set",
        "fault",
        "found (recall)",
        "planted ones among what is named (precision)",
        "named anew, not planted",
    )
    for name, one in sets.items():
        for fault, f in one["faults"].items():
            anew = f"{f['named_new']:,}"
            precision = rate(f["found"], f["named"])
            lines.append(_line(name, fault, rate(f["found"], f["planted"]), precision, anew))
        if "flipped labels" in one["faults"]:
            lines.append(_line(name, "spurious marker", *_marker(one["marker"])))
    note = (
        "Precision counts whatever is named and was not planted as wrong, also where the set itself repeats rows or"
        " labels them wrongly; the last column counts what was named neither before nor planted."
    )
    return [*lines, "", note, ""]


def _marker(marker: Mapping[str, Sequence[str]]) -> tuple[str, str, str]:
    """Say whether the planted marker is named, and how many markers were named before and are named anew."""
    new = [title for title in marker["after"] if title not in marker["before"]]
    planted = [title for title in new if "[t2]" in title.lower() or "'t2'" in title.lower()]
    found = "named" if planted else "not named"
    return found, f"{len(marker['before'])} markers named before", f"{len(new) - len(planted)}"


def _list_clean_sets(sets: Mapping[str, Any]) -> list[str]:
    lines = _head("set", "check", "rows named before anything was planted", "alarm")
    for name, one in sets.items():
        for fault, f in one["faults"].items():
            alarm = "yes" if f["alarm_before"] else "no"
            lines.append(_line(name, fault, rate(f["named_before"], one["n"]), alarm))
    note = (
        "An alarm is a finding that is more than a note. The generator's labels are right by its making, so each of its"
        " rows that is named for its label is named wrongly. Its messages come from a few patterns each, which is what"
        " near duplicates are, where no one word tells them apart."
    )
    return [*lines, "", note, ""]


def _read(sets: Mapping[str, Any], read: Mapping[str, Any]) -> list[str]:
    """Count what a reader says of findings that nobody planted; a finding that is named no more is left out."""
    lines = _head("set", "check", "findings read", "are what the check says")
    for name, checks in read.items():
        for fault, verdicts in checks.items():
            there = {
                str(line) for line in sets.get(name, {}).get("faults", {}).get(fault, {}).get("unplanted", [])
            }
            kept = [right for line, right in verdicts.items() if line in there]
            if not kept:
                continue
            lines.append(_line(name, fault, str(len(kept)), rate(sum(kept), len(kept))))
    said = (
        "Findings that nobody planted, drawn at random from those above and read by hand. Of near duplicates: does the row"
        " ask what the row it is said to repeat asks? In Banking77 the wrong ones change one word that carries the sense."
        " In Dolly 22 were read while answers that are free texts did not count: 8 asked the same, most of them with another"
        " answer. Rows whose answers differ are no duplicates now, for the check as for `data dedup`, and none of Dolly's is"
        " named any more. Of suspect labels: does another label of the set fit the question better?"
    )
    return [said, "", *lines, ""]


def _leaks(sets: Mapping[str, Any]) -> list[str]:
    lines = _head("set", "measures", *KINDS.values())
    for name, one in sets.items():
        for how, counts in one["leaks"].items():
            shares = (rate(*counts[kind]) if kind in counts else formatting.UNKNOWN for kind in KINDS)
            lines.append(_line(name, how, *shares))
    is_partial = any(
        KINDS.keys() - counts.keys() for one in sets.values() for counts in one["leaks"].values()
    )
    note = (
        "A slip of the pen leaves one or two small edits; a greeting stands in front of an item, thanks behind it, or both."
        " The last column holds training rows that the measures take"
        " for a test item although nobody planted them: sets of many short questions ask the same thing twice, so"
        " part of them are leaks that were there."
    )
    if is_partial:
        note += (
            " A line with dashes was measured before test items in a greeting were planted, and before words in a part"
            " were a measure."
        )
    return [*lines, "", note, ""]


def _repeats(sets: Mapping[str, Any]) -> list[str]:
    """Count the pairs by hand that are named as duplicates of each other in one file."""
    columns = ("paraphrase", "different", "rows of the set")
    lines = _head(
        "set", "measures", "planted among what is named (precision)", *(KINDS[kind] for kind in columns)
    )
    for name, one in sets.items():
        for how, counts in one.get("repeats", {}).items():
            hits = [counts[kind][0] for kind in columns]
            lines.append(
                _line(name, how, rate(hits[0], sum(hits)), *(rate(*counts[kind]) for kind in columns))
            )
    if len(lines) == 2:
        return []
    note = (
        "Both questions of a pair stand in one file with the same answer, as `harness data check --embeddings` looks for duplicates"
        " by sense, with all-MiniLM-L6-v2. Precision counts every row of the set that is named as wrong,"
        " also where two of its rows do ask the same."
    )
    return ["## Duplicates in other words", "", *lines, "", note, ""]


def _trade_off(found: Sequence[Mapping[str, Any]]) -> list[str]:
    if not found:
        return []
    lines = _head("cosine of at least", "paraphrases found", "look-alikes of another sense named")
    lines += [_line(f"{t['threshold']:.2f}", rate(*t["paraphrase"]), rate(*t["different"])) for t in found]
    note = (
        "The half of the pairs that judges, each pair alone, by all-MiniLM-L6-v2. The look-alikes were written to be hard:"
        " no cosine tells a paraphrase from a question on the same thing with one word changed, so a threshold that"
        " bounds their alarms finds few paraphrases. Nothing here clears a training file of leaks; read the closest pairs."
    )
    return ["### What another threshold of the embeddings would give", "", *lines, "", note, ""]


def _head(*columns: str) -> list[str]:
    return [_line(*columns), _line(*("---" for _ in columns))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
