"""Sections on metrics beside people's labels: agreement, errors of a judge, corrected scores and differences.

Invariant: a corrected number stands beside the uncorrected one; a metric that is not shown to agree with
people better than chance is said to be such.
"""

from collections.abc import Iterator, Sequence

from harness.comparison import (
    MIN_LABELS,
    ArmCalibration,
    Estimate,
    LengthFavour,
    MetricCalibration,
    PairCalibration,
)
from harness.formatting import change, count, figure, percent, plain, pluralize, score
from harness.report.document import Section
from harness.report.wording import change_text, score_text

KIND = "labels"
_LEAST_ALPHA = 0.667  # of raters, for which Krippendorff allows tentative conclusions
_ARM_COLUMNS = ("labels", "uncorrected", "corrected", "labels alone", "agree, %", "error")
_PAIR_COLUMNS = (
    "labels",
    "uncorrected",
    "corrected",
    "labels alone",
    "overrates it by",
    "favours the longer by",
)


def label_sections(calibrations: Sequence[MetricCalibration]) -> Iterator[Section]:
    """Show each metric's scores, then its paired differences, with what is to be said of both."""
    for c in calibrations:
        rows = [_arm_row(arm) for arm in c.arms]
        title = f"People's labels and {c.metric}"
        notes = list(sentences(c))
        yield Section(KIND, title, (c.metric, *_ARM_COLUMNS), rows, notes=() if c.pairs else notes)
        if c.pairs:
            columns = (c.metric, *_PAIR_COLUMNS)
            yield Section(
                KIND, f"Differences by {c.metric}", columns, list(map(_pair_row, c.pairs)), notes=notes
            )


def sentences(c: MetricCalibration) -> Iterator[str]:
    """Say how far a metric agrees with people, where its errors lie, and what more labels would do."""
    yield _agreement(c)
    if c.raters_alpha is not None and c.raters_alpha < _LEAST_ALPHA:
        yield (
            f"the raters agree too little with each other (alpha < {_LEAST_ALPHA:g}, Krippendorff 2004) to"
            " say what a good answer is; next: sharpen the criteria, and let them label again"
        )
    if all(arm.corrected is None for arm in c.arms):
        yield f"{c.metric} is corrected once {MIN_LABELS} answers of a candidate have a label"
        return
    yield from (_confusion(c.metric, arm) for arm in c.arms if arm.confusion)
    if c.is_near_chance:
        yield (
            f"{c.metric} is not shown to agree with people better than chance does: the corrected scores rest"
            " on the labels, and are as uncertain as these alone"
        )
    if c.length:
        yield _length_within(c.metric, c.length)
    if c.own:
        yield _self_preference(c)
    for pair in c.pairs:
        if pair.favour and not pair.favour.low <= 0 <= pair.favour.high:
            liked, other = (pair.new, pair.base) if pair.favour.score > 0 else (pair.base, pair.new)
            by = percent(abs(pair.favour.score))
            yield f"{c.metric} favours {liked} over {other} by {by} points more than people do"
        if pair.longer:
            yield _length_between(c.metric, pair, pair.longer)
        if said := _say_better(pair):
            yield said


def _length_within(metric: str, found: Estimate) -> str:
    """Say whether a metric prefers length among the answers of one candidate."""
    by = f"{change_text(found)} points with each doubling of an answer's length"
    if found.low <= 0 <= found.high:
        return f"among one candidate's answers {metric} is not shown to prefer long or short ones: {by}"
    bias = "overrates" if found.score > 0 else "underrates"
    return f"{metric} {bias} longer answers of one candidate, as its errors against people show: {by}"


def _length_between(metric: str, pair: PairCalibration, of: LengthFavour) -> str:
    """Say whether a metric prefers the longer of two answers to an item, and what else that may be."""
    low, high = of.favour.low, of.favour.high
    which = "longer" if of.favour.score > 0 else "shorter"
    ends = sorted((abs(low), abs(high)))
    by = score(of.favour.unit, abs(of.favour.score), *ends)
    share = f"{pair.new}'s are {figure(of.ratio)} times as long as {pair.base}'s"
    share += f", the longer ones on {percent(of.new_longer)} % of items"
    if low <= 0 <= high:
        by = f"{change_text(of.favour)} points for the longer one, compared with people"
        return f"of two answers to an item {metric} is not shown to favour a length: {by} ({share})"
    favours = f"of two answers to an item {metric} favours the {which} one"
    said = f"{favours} by {by} points more than people do ({share})"
    if not of.is_length:
        said += "; what else sets the two candidates apart may be the cause as well"
    return said


def _agreement(c: MetricCalibration) -> str:
    who = f"labels of {', '.join(c.raters)} count for"
    each = "; ".join(f"{count(arm.n_labels)} answers of {arm.name}" for arm in c.arms)
    kappa = f"; kappa of {c.metric} with people {plain(*c.kappa[:3])}" if c.kappa else ""
    alpha = (
        "" if c.raters_alpha is None else f"; of the raters with each other {plain(c.raters_alpha)} (alpha)"
    )
    return f"{who} {each}{kappa}{alpha}"


def _confusion(metric: str, arm: ArmCalibration) -> str:
    """Say how judge and people sorted the labelled answers, and the rate that both kinds of error leave."""
    assert arm.confusion is not None
    both, judge_alone, people_alone, neither = map(count, arm.confusion)
    errors = f"sensitivity {score_text(arm.sensitivity)}, specificity {score_text(arm.specificity)}"
    rate = f", by Rogan–Gladen {score_text(arm.rogan_gladen)}" if arm.rogan_gladen else ""
    return (
        f"{arm.name}: passed by both {both}, by {metric} alone {judge_alone}, by people alone {people_alone},"
        f" by neither {neither} ({errors}{rate}){_split_text(arm.n_split)}"
    )


def _split_text(n: int) -> str:
    """Say how many answers have no majority of their raters; empty of none."""
    left_out = "is left out" if n == 1 else "are left out"
    return f"; {pluralize(n, 'answer')} on which as many raters said yes as no {left_out}" if n else ""


def _self_preference(c: MetricCalibration) -> str:
    """Say whether the judge overrates what is made from its own weights, as far as a pair can tell."""
    said = f"{c.metric} is graded by the model that {', '.join(c.own)} is made from"
    told = [_describe_bias(pair, c.own) for pair in c.pairs if (pair.new in c.own) != (pair.base in c.own)]
    found = "; ".join(filter(None, told)) or "no pair with another model shows whether it prefers that"
    return f"{said}: {found}"


def _describe_bias(pair: PairCalibration, own: Sequence[str]) -> str:
    if pair.favour is None:
        return ""
    sign = 1 if pair.new in own else -1
    liked, other = (pair.new, pair.base)[::sign]
    low, high = sorted((sign * pair.favour.low, sign * pair.favour.high))
    by = change(pair.favour.unit, sign * pair.favour.score, low, high)
    return f"it overrates {liked} against {other} by {by} points"


def _say_better(pair: PairCalibration) -> str:
    """Say which arm is better by the corrected difference, or how many more labels would probably tell."""
    if pair.corrected is None:
        return ""
    found = f"{pair.new} − {pair.base}: corrected {change_text(pair.corrected)} points"
    if pair.more_labels == 0:
        return f"{found}, which people's labels show"
    if pair.more_labels is None:
        return f"{found}; no number of labels would settle that on {count(pair.n)} items"
    more = pluralize(pair.more_labels, "more item")
    return f"{found}; labels of both answers to about {more} would probably settle it"


def _arm_row(arm: ArmCalibration) -> list[str]:
    return [
        arm.name,
        count(arm.n_labels),
        *map(score_text, (arm.score, arm.corrected, arm.labels_alone, arm.agreement)),
        change_text(arm.error),
    ]


def _pair_row(pair: PairCalibration) -> list[str]:
    return [
        f"{pair.new} − {pair.base}",
        count(pair.n_labels),
        *map(change_text, (pair.delta, pair.corrected, pair.labels_alone, pair.favour)),
        change_text(pair.longer.favour if pair.longer else None),
    ]
