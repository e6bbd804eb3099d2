"""The claims page: claim, source, measurement with its interval, verdict; then the missing claims."""

from collections import Counter
from collections.abc import Mapping, Sequence

from harness.formatting import count, pluralize
from reports.studies.claims.claim import Claim, OpenClaim
from reports.studies.claims.kept import StoredResult

_ABOUT = """\
What papers claim, held against what is computed or measured here, on the embedded model and two CPU cores or, where it says so,
a GPU. A verdict is about this
model and these rows alone: **holds** where the whole 95 % interval bears the claim out, **does not hold here** where none of it
does, **not decided** where it reaches over both. An exact figure has no interval. The interval of a fine-tune holds the variance
between its three seeds. A difference of less than five points of the target counts as none where equality is claimed. A call
takes up what an ended one had trained and answered, so its time may be less than the whole."""


def page(
    claims: Sequence[Claim], open_claims: Sequence[OpenClaim], results: Mapping[str, StoredResult]
) -> str:
    """Write the page as Markdown; missing claims are listed with those that are not measured here."""
    measured = [claim for claim in claims if claim.name in results]
    lines = ["# Claims", "", _ABOUT, "", _summary(measured, results), ""]
    lines += ["| claim | source | measured | verdict |", "|---|---|---|---|"]
    lines += [_row(claim, results[claim.name]) for claim in measured]
    lines += ["", "## How", "", *(_describe_call(claim, results[claim.name]) for claim in measured)]
    lines += [
        "",
        "## Not measured here",
        "",
        "| claim | source | what it needs | about |",
        "|---|---|---|---|",
    ]
    lines += [_write_missing_row(claim) for claim in claims if claim.name not in results]
    lines += [
        f"| {c.says} | {c.source} | {c.needs} | {pluralize(round(c.hours), 'hour')} |"
        for c in open_claims
    ]
    again = "`make claims ARGS='NAME --again'` repeats one: ten minutes to an hour on two cores."
    return "\n".join([*lines, "", f"`make claims` measures what is missing and makes this page again. {again}", ""])


def _summary(measured: Sequence[Claim], results: Mapping[str, StoredResult]) -> str:
    counts = Counter(results[claim.name].verdict for claim in measured)
    text = ", ".join(f"{verdict}: {count(n)}" for verdict, n in counts.most_common())
    return f"{pluralize(len(measured), 'claim')} measured. Verdicts: {text or 'none'}."


def _row(claim: Claim, result: StoredResult) -> str:
    return f"| {claim.says} | {claim.source} | {result.shown} | {result.verdict} |"


def _describe_call(claim: Claim, call: StoredResult) -> str:
    return (
        f"- **{claim.name}**: {call.note}. {call.machine}, {call.date}; the call took {call.seconds:.0f} s."
    )


def _write_missing_row(claim: Claim) -> str:
    minutes = pluralize(max(1, round(claim.minutes)), "minute")
    on = claim.needs or "two cores"
    return f"| {claim.says} | {claim.source} | `make claims ARGS={claim.name}` on {on} | {minutes} |"
