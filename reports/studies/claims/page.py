"""The claims page: claim, source, what was measured with its interval, verdict; then what was not measured."""

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
between its seeds, where it has three; one seed judges a checkpoint and not the recipe. A difference of less than five points of
the target counts as none where equality is claimed. A call takes up what an ended one had trained and answered, so its time may be
less than the whole."""


def page(claims: Sequence[Claim], open_claims: Sequence[OpenClaim], found: Mapping[str, StoredResult]) -> str:
    """Write the page as Markdown; claims that are yet to be measured stand among those that are not."""
    known = [claim for claim in claims if claim.name in found]
    lines = ["# Claims", "", _ABOUT, "", _summary(known, found), ""]
    lines += ["| claim | source | measured | verdict |", "|---|---|---|---|"]
    lines += [_row(claim, found[claim.name]) for claim in known]
    lines += ["", "## How", "", *(_describe_call(claim, found[claim.name]) for claim in known)]
    lines += [
        "",
        "## Not measured here",
        "",
        "| claim | source | what it needs | about |",
        "|---|---|---|---|",
    ]
    lines += [_write_missing_row(claim) for claim in claims if claim.name not in found]
    lines += [
        f"| {one.says} | {one.source} | {one.needs} | {pluralize(round(one.hours), 'hour')} |"
        for one in open_claims
    ]
    again = "A claim of one seed needs three: `make claims ARGS='NAME --again'`, ten minutes to an hour on two cores."
    return "\n".join([*lines, "", f"`make claims` measures what is missing and makes this page again. {again}", ""])


def _summary(known: Sequence[Claim], found: Mapping[str, StoredResult]) -> str:
    of = Counter(found[claim.name].verdict for claim in known)
    said = ", ".join(f"{verdict}: {count(n)}" for verdict, n in of.most_common())
    return f"{pluralize(len(known), 'claim')} measured. Verdicts: {said or 'none'}."


def _row(claim: Claim, kept: StoredResult) -> str:
    return f"| {claim.says} | {claim.source} | {kept.shown} | {kept.verdict} |"


def _describe_call(claim: Claim, kept: StoredResult) -> str:
    return (
        f"- **{claim.name}**: {kept.note}. {kept.machine}, {kept.date}; the call took {kept.seconds:.0f} s."
    )


def _write_missing_row(claim: Claim) -> str:
    minutes = pluralize(max(1, round(claim.minutes)), "minute")
    on = claim.needs or "two cores"
    return f"| {claim.says} | {claim.source} | `make claims ARGS={claim.name}` on {on} | {minutes} |"
