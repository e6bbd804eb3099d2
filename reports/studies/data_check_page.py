"""The page of the study of planted faults, written from its stored figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from statsmodels.stats.proportion import proportion_confint

from harness import formatting
from harness.data.near_duplicates import THRESHOLD
from harness.data.contamination import EIGHT_GRAMS, EMBEDDINGS, WORDS_IN_COMMON

KINDS = {
    "paraphrase": "paraphrases by hand",
    "slips of the pen": "test items with typos",
    "in a greeting": "test items in a greeting",
    "in a greeting, with slips": "the same with typos",
    "different": "look-alikes with another meaning (false alarms)",
    "rows of the set": "unplanted rows of the set",
}


def page(results: Mapping[str, Any], verdicts: Mapping[str, Any]) -> str:
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
            *_read(sets, verdicts),
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
    sizes = ", ".join(f"{name} ({results['n']:,} rows)" for name, results in sets.items())
    faults = (
        f"Faults were planted at known places in rows of three sets: {sizes}. `harness data check` examined them, and the"
        " contamination measures compared training with test rows. Shares are in percent with 95 % Wilson intervals; planted faults are"
        " drawn independently, so an interval holds only for faults of these kinds. Made by"
        " `python -m reports.studies.data_check`, whose docstring says what was planted and how."
    )
    thresholds = (
        f"No threshold was chosen on the data judged here: near duplicates are rows with a Jaccard index of"
        f" {THRESHOLD} or more, set before the first run; the contamination measures' {WORDS_IN_COMMON} and {EMBEDDINGS} come"
        f" from the odd-numbered hand-written pairs, and {EIGHT_GRAMS} from PaLM. The pairs judged here have even"
        " numbers. Four rules are not thresholds and were not chosen blindly. Two were added after reading the findings in Dolly: rows with different answers are not duplicates,"
        " and rows of a series, in which four or more differ in one word, are not similar. Where a row may be cut for *words in a part* was set after reading such pairs"
        " of Dolly and Banking77, and when suspect labels raise an alarm was chosen on small draws of Banking77 and of the generator."
    )
    return [faults, "", thresholds, ""]


def _faults(sets: Mapping[str, Any]) -> list[str]:
    lines = _head(
        "set",
        "fault",
        "found (recall)",
        "planted ones among what is named (precision)",
        "newly named, not planted",
    )
    for name, results in sets.items():
        for fault, f in results["faults"].items():
            new = f"{f['named_new']:,}"
            precision = rate(f["found"], f["named"])
            lines.append(_line(name, fault, rate(f["found"], f["planted"]), precision, new))
        if "flipped labels" in results["faults"]:
            lines.append(_line(name, "spurious marker", *_marker(results["marker"])))
    note = (
        "Precision counts every unplanted row that is named as wrong, even if the set itself repeats or mislabels it;"
        " the last column counts unplanted rows that were not named before the faults were planted."
    )
    return [*lines, "", note, ""]


def _marker(marker: Mapping[str, Sequence[str]]) -> tuple[str, str, str]:
    """Return whether the planted marker is named, and how many markers were named before and newly."""
    new = [title for title in marker["after"] if title not in marker["before"]]
    planted = [title for title in new if "[t2]" in title.lower() or "'t2'" in title.lower()]
    verdict = "named" if planted else "not named"
    return verdict, f"{len(marker['before'])} markers named before", f"{len(new) - len(planted)}"


def _list_clean_sets(sets: Mapping[str, Any]) -> list[str]:
    lines = _head("set", "check", "rows named before anything was planted", "alarm")
    for name, results in sets.items():
        for fault, f in results["faults"].items():
            alarm = "yes" if f["alarm_before"] else "no"
            lines.append(_line(name, fault, rate(f["named_before"], results["n"]), alarm))
    note = (
        "An alarm is a finding above the severity of a note. The generator's labels are right by construction, so each of its"
        " rows named for its label is a false alarm. Its messages come from a few patterns, so many are near duplicates"
        " unless a single word distinguishes them."
    )
    return [*lines, "", note, ""]


def _read(sets: Mapping[str, Any], verdicts_by_set: Mapping[str, Any]) -> list[str]:
    """Summarise a reader's verdicts on unplanted findings, without findings that are no longer named."""
    lines = _head("set", "check", "findings read", "are what the check says")
    for name, checks in verdicts_by_set.items():
        for fault, verdicts in checks.items():
            unplanted = sets.get(name, {}).get("faults", {}).get(fault, {}).get("unplanted", [])
            named_lines = set(map(str, unplanted))
            current = [right for line, right in verdicts.items() if line in named_lines]
            if not current:
                continue
            lines.append(_line(name, fault, str(len(current)), rate(sum(current), len(current))))
    about = (
        "Unplanted findings, drawn at random from those above and read by hand. For near duplicates: does the row ask the"
        " same as the row that it is said to repeat? In Banking77 the wrong ones change one word that carries the meaning."
        " In Dolly 22 were read when free-text answers did not yet count: 8 asked the same, most of them with another"
        " answer. Rows with different answers are no longer duplicates, for the check and for `data dedup`, and none of"
        " Dolly's is named any more. For suspect labels: does another label of the set fit the question better?"
    )
    return [about, "", *lines, ""]


def _leaks(sets: Mapping[str, Any]) -> list[str]:
    lines = _head("set", "measures", *KINDS.values())
    for name, results in sets.items():
        for how, counts in results["leaks"].items():
            shares = (rate(*counts[kind]) if kind in counts else formatting.UNKNOWN for kind in KINDS)
            lines.append(_line(name, how, *shares))
    all_counts = [counts for results in sets.values() for counts in results["leaks"].values()]
    is_partial = any(KINDS.keys() - counts.keys() for counts in all_counts)
    note = (
        "Typos are one or two small edits; a greeting is before an item, thanks after it, or both."
        " The last column counts unplanted training rows that the measures take for a test item: sets of many short"
        " questions ask the same thing twice, so some of them are leaks in the original data."
    )
    if is_partial:
        note += (
            " A line with dashes was measured before test items in a greeting were planted, and before words in a part"
            " were a measure."
        )
    return [*lines, "", note, ""]


def _repeats(sets: Mapping[str, Any]) -> list[str]:
    """Return the table of hand-written pairs that are named as duplicates in one file."""
    columns = ("paraphrase", "different", "rows of the set")
    lines = _head(
        "set", "measures", "planted among the named (precision)", *(KINDS[kind] for kind in columns)
    )
    for name, results in sets.items():
        for how, counts in results.get("repeats", {}).items():
            hits = [counts[kind][0] for kind in columns]
            lines.append(
                _line(name, how, rate(hits[0], sum(hits)), *(rate(*counts[kind]) for kind in columns))
            )
    if len(lines) == 2:
        return []
    note = (
        "Both questions of a pair are in one file with the same answer; `harness data check --embeddings` looks for duplicates"
        " by meaning with all-MiniLM-L6-v2. Precision counts every named row of the set as wrong,"
        " even if two of its rows do ask the same."
    )
    return ["## Duplicates in other words", "", *lines, "", note, ""]


def _trade_off(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    if not counts:
        return []
    lines = _head("cosine of at least", "paraphrases found", "look-alikes with another meaning named")
    lines += [_line(f"{t['threshold']:.2f}", rate(*t["paraphrase"]), rate(*t["different"])) for t in counts]
    note = (
        "The even-numbered pairs, each on its own, by all-MiniLM-L6-v2. The look-alikes were written to be hard:"
        " no cosine separates a paraphrase from a question on the same thing with one word changed, so a threshold that"
        " limits false alarms finds few paraphrases. No measure here proves that a training file has no leaks; read the closest pairs."
    )
    return ["### Other thresholds of the embeddings", "", *lines, "", note, ""]


def _head(*columns: str) -> list[str]:
    return [_line(*columns), _line(*("---" for _ in columns))]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
