"""Split of rows into training, validation and test, or into folds; stratified, by groups, or by time.

Invariant: rows of one group, and rows whose questions are alike, are in one part; every class of a stratified
split is in every part. By time, no row of a part is older than one of the part before. Augmented rows are
only in training.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harness.data import splits
from harness.data.columns import Roles, read_question_and_answers
from harness.data.edit.changes import Change
from harness.data.examples import SourcedExample
from harness.data.near_duplicates import THRESHOLD, TextMatch, near_duplicates, nearest
from harness.data.text_files import EIGHT_DIGITS, FORMS, Row, Rows, cap_problems, is_day, read_moment
from harness.errors import Problem, UserError, refuse
from harness.formatting import plain, pluralize
from harness.records import Example, fold_text

PARTS = ("train", "validation", "test")
CLUSTER = "cluster"  # a task's column of row families
SHARES = (0.64, 0.16, 0.2)  # a fifth for test, and a fifth of the rest for validation, as compare sets aside
_FAR = 0.05  # of a share
_IN_EARLIER_GROUP = "in a group of an earlier part"
_TIMES = f"{FORMS}; --time-format %d.%m.%Y says another form"


class SplitOptions(NamedTuple):
    """Options of a split: shares of the parts, and columns to stratify, group and order by.

    `alike` is the Jaccard index, in (0, 1], from which two questions must be in the same part. With `folds`
    the parts are that many folds of equal size, and shares are ignored.
    """

    shares: tuple[float, ...] = SHARES
    stratify: str | None = None
    group: str | None = None
    time: str | None = None
    time_format: str | None = None
    alike: float = THRESHOLD
    seed: int = 0
    folds: int | None = None

    @property
    def parts(self) -> dict[str, float]:
        """The parts with a share, by name."""
        if self.folds:
            return {f"fold-{i}": 1 / self.folds for i in range(1, self.folds + 1)}
        return {name: share for name, share in zip(PARTS, self.shares, strict=True) if share > 0}

    @property
    def parameters(self) -> dict[str, Any]:
        """Keys and values for the manifest, with folds or shares as requested."""
        left_out = "shares" if self.folds else "folds"
        return {name: value for name, value in self._asdict().items() if name != left_out}


class SplitRows(NamedTuple):
    """The rows of every part that has a share, in the order of the file, and changes of others."""

    parts: dict[str, list[Row]]
    changes: list[Change]


def split(content: Rows, roles: Roles, way: SplitOptions) -> SplitRows:
    """Split rows; parts that cannot be made as the options say are refused."""
    check_way(way)
    source = content._replace(rows=[row for row in content.rows if not splits.is_augmented(row)])
    if not source.rows:
        raise UserError(splits.phrase_only_augmented(content.shown))
    if way.folds and len(source.rows) < len(content.rows):
        step = "split the rows that they were made from, and augment each fold's training rows"
        raise UserError(content.shown, "augmented rows", "folds of rows that are tested", step)
    questions = [read_question_and_answers(row, roles).whole for row in source.rows]
    found = _split_by_time(source, questions, way) if way.time else _split_at_random(source, questions, way)
    found = _place_augmented(found, content, roles, way)
    _refuse_empty_parts(content.shown, found, way)
    return found


def keep_clusters(way: SplitOptions, content: Rows) -> SplitOptions:
    """Group by the rows' `cluster` column if no other is named, as a comparison does."""
    has_some = any(row.fields.get(CLUSTER) not in (None, "") for row in content.rows)
    return way._replace(group=CLUSTER) if way.group is None and has_some else way


def _place_augmented(found: SplitRows, content: Rows, roles: Roles, way: SplitOptions) -> SplitRows:
    """Put augmented rows into training with their originals, unless another part has a similar question."""
    if not (origins_of := splits.origins(content.rows)):
        return found
    changes = {change.where: change for change in found.changes}
    trained = {row.where for row in found.parts["train"]}
    for where, origins in origins_of.items():
        if not all(origin.places for origin in origins):
            changes[where] = Change(where, "dropped", ("augmented from a row that is not in the file",))
        elif other := next((place for o in origins for place in o.places if place not in trained), None):
            changes[where] = Change(where, "dropped", ("augmented from a row that is not trained on",), other)
    rows = [row for row in content.rows if splits.is_augmented(row)]
    others = [row for name, part in found.parts.items() if name != "train" for row in part]
    asked = {row.where: read_question_and_answers(row, roles).whole for row in content.rows}
    augmented, known = ([asked[row.where] for row in listed] for listed in (rows, others))
    for row, near in zip(rows, _nearest(augmented, known, way.alike, [*asked.values()]), strict=True):
        if near:
            reason = "alike to a question of another part"
            changes[row.where] = Change(row.where, "dropped", (reason,), others[near.row].where)
    trained |= origins_of.keys() - changes.keys()
    rows = [row for row in content.rows if row.where in trained]
    ordered = [changes[row.where] for row in content.rows if row.where in changes]
    return SplitRows({**found.parts, "train": rows}, ordered)


def check_way(way: SplitOptions) -> None:
    """Refuse shares that do not add up, and impossible folds."""
    shares = way.shares
    if way.folds is None:
        bad = len(shares) != len(PARTS) or not all(0 <= share < 1 for share in shares) or shares[0] == 0
        if bad or abs(sum(shares) - 1) > 1e-6:
            found = f"{','.join(map(plain, shares))}, which add up to {sum(shares):g}"
            expected = "shares of train, validation and test that add up to 1, such as 0.8,0.1,0.1"
            raise UserError("--shares", found, expected, "only validation and test may be 0")
    elif way.folds < 2:
        raise UserError("--folds", str(way.folds), "2 folds or more", "such as --folds 5")
    elif way.time or shares != SHARES:
        option = f"--time {way.time}" if way.time else f"--shares {','.join(map(plain, shares))}"
        raise UserError("--folds", f"{option} as well", "folds of one size", "leave one out")


def odd_shares(found: SplitRows, way: SplitOptions) -> Iterator[str]:
    """Name parts that are far from their shares because groups cannot be divided."""
    sizes = {name: sum(not splits.is_augmented(row) for row in rows) for name, rows in found.parts.items()}
    for name, share in way.parts.items():
        actual = sizes[name] / max(1, sum(sizes.values()))
        if abs(actual - share) > _FAR:
            yield (
                f"{name} has {100 * actual:.0f} % of the rows, not {100 * share:.0f} %: "
                "rows that belong together cannot be parted"
            )


def _split_at_random(content: Rows, questions: list[str], way: SplitOptions) -> SplitRows:
    """Draw test and validation by whole groups; rows that are alike, also through others, are joined."""
    # The kind of a question is the first row with an equal or similar one.
    kinds, equal = list(range(len(questions))), dict[str, int]()
    for kept, others in near_duplicates(questions, threshold=way.alike) if way.alike < 1 else ():
        for other in others:
            kinds[other.row] = kept
    folded = map(fold_text, questions)
    kinds = [equal.setdefault(text, kinds[i]) if text else kinds[i] for i, text in enumerate(folded)]
    while True:
        parts = _draw_parts(content, kinds, way)
        joined = list(_alike_across(parts, questions, way.alike))
        if not joined:
            rows = {name: [content.rows[i] for i in part] for name, part in parts.items()}
            return SplitRows(rows, changes=[])
        # Rows of one kind, and those alike across parts, get their first kind.
        marks = [[("kind", str(kind))] for kind in kinds]
        for number, pair in enumerate(joined):
            for i in pair:
                marks[i].append(("pair", str(number)))
        for group in splits.join(marks):
            first = min(kinds[i] for i in group)
            for i in group:
                kinds[i] = first


def _draw_parts(content: Rows, kinds: Sequence[int], way: SplitOptions) -> dict[str, list[int]]:
    """Return the indices of every part; rows of one kind or of one group stay together."""
    # Rows as examples: the kind is the question, the group the cluster, the class the slice.
    rows = list[SourcedExample]()
    for i, row in enumerate(content.rows):
        group = way.group and row.fields.get(way.group)
        cluster = f"row {i}" if group in (None, "") else f"group {group}"
        stratum = str(row.fields.get(way.stratify)) if way.stratify else ""
        question = ({"role": "user", "content": str(kinds[i])},)
        rows.append(SourcedExample(Example(str(i), question, cluster=cluster, slice=stratum), row.where))
    groups, named = splits.groups_of([row.example for row in rows]), list(way.parts)
    if len(groups) < len(named):
        found = f"{pluralize(len(groups), 'group')} of rows that belong together or are alike"
        step = "add rows, or raise --alike, or name another --group"
        raise UserError(content.shown, found, f"at least {len(named)}, one a part", step)
    if way.folds:
        dealt = splits.deal(rows, way.folds, random.Random(f"{way.seed}/folds"))
    else:
        train, dealt, left = rows, list[list[SourcedExample]](), 1.0
        for n_before, name in reversed(list(enumerate(way.parts))[1:]):
            rng, share = random.Random(f"{way.seed}/{name}"), way.parts[name] / left
            train, part = splits.set_aside(train, rng, share=share, leave=n_before)
            dealt.insert(0, part)
            left -= way.parts[name]
        dealt.insert(0, train)
    if way.stratify:
        dealt, problems = splits.spread_labels(rows, dealt), list[Problem]()
        counts = [Counter(row.example.slice for row in part) for part in dealt]
        labels = splits.labels_of(rows, groups)
        for value, n in sorted(sum(counts, Counter[str]()).items()):
            if lacking := [name for name, count in zip(named, counts, strict=True) if not count[value]]:
                n_groups = pluralize(sum(value in group for group in labels), "group")
                found = f"{pluralize(n, 'row')} of the class {value!r}, none of them in {', '.join(lacking)}"
                expected = f"every class in every part; rows that belong together give {n_groups} of it"
                step = "add rows of it, drop or rename the class, or leave out --stratify"
                where = f"{content.shown}, --stratify {way.stratify}"
                problems.append(Problem(where, found, expected, step))
        refuse(cap_problems(problems, content.shown, "classes that are too small"))
    return {name: [int(row.example.id) for row in part] for name, part in zip(named, dealt, strict=True)}


def _alike_across(
    parts: Mapping[str, list[int]], questions: Sequence[str], alike: float
) -> Iterator[tuple[int, int]]:
    """Yield rows of two parts whose questions are alike, each with the nearest of an earlier part."""
    before: list[int] = []
    for part in parts.values():
        asked, known = ([questions[i] for i in indices] for indices in (part, before))
        found = _nearest(asked, known, alike, questions)
        yield from ((i, before[match.row]) for i, match in zip(part, found, strict=True) if match)
        before += part


def _nearest(
    questions: Sequence[str], known: Sequence[str], alike: float, among: Sequence[str]
) -> list[TextMatch | None]:
    """Return for each question the most similar known one; with `alike` 1 the first equal one."""
    if alike < 1:
        return nearest(questions, known, threshold=alike, among=among)
    first = {text: i for i, question in reversed(list(enumerate(known))) if (text := fold_text(question))}
    places = (first.get(fold_text(question)) for question in questions)
    return [None if place is None else TextMatch(place, 1.0) for place in places]


def _split_by_time(content: Rows, questions: list[str], way: SplitOptions) -> SplitRows:
    """Cut at two times, ties in the earlier part; rows that repeat an earlier part's are dropped."""
    times = _times(content, way)
    order = sorted(range(len(times)), key=times.__getitem__)
    parts: dict[str, list[int]] = {}
    start, share = 0, 0.0
    for name, part_share in way.parts.items():
        share += part_share
        end = round(share * len(order))
        while 0 < end < len(order) and times[order[end]] == times[order[end - 1]]:
            end += 1
        parts[name], start = sorted(order[start:end]), max(start, end)
    changes: dict[int, Change] = {}
    alike = dict(_alike_across(parts, questions, way.alike))
    written = [way.group and row.fields.get(way.group) for row in content.rows]
    groups = ["" if group is None else str(group) for group in written]
    first: dict[str, int] = {}  # row of each group in an earlier part
    for part in parts.values():
        for i in part:
            earlier = alike.get(i, first.get(groups[i]))
            if earlier is not None:
                reason = "alike to a question of an earlier part" if i in alike else _IN_EARLIER_GROUP
                changes[i] = Change(content.rows[i].where, "dropped", (reason,), content.rows[earlier].where)
        first = {groups[i]: i for i in part if groups[i]} | first
    kept = {name: [content.rows[i] for i in part if i not in changes] for name, part in parts.items()}
    return SplitRows(kept, [changes[i] for i in sorted(changes)])


def _times(content: Rows, way: SplitOptions) -> list[float]:
    """Read the time of every row, in seconds or as its number; a time without a zone is UTC."""
    times, problems = [], []
    kinds: dict[bool, str] = {}
    values = [row.fields.get(way.time or "") for row in content.rows]
    with_days = all(map(is_day, filter(EIGHT_DIGITS.fullmatch, map(str, values))))
    for row, value in zip(content.rows, values, strict=True):
        try:
            time, is_number = read_moment(value, way.time_format, with_days=with_days)
            times.append(time)
            kinds.setdefault(is_number, row.where)
        except (ValueError, OverflowError):
            is_empty = value is None or not str(value).strip()
            found = f"no time in {way.time!r}"
            found = found if is_empty else f"{value!r} in {way.time!r}, which is not a time"
            problems.append(Problem(row.where, found, _TIMES, "fix the row, or drop it"))
    if len(kinds) > 1 and not problems:
        found = f"a number in {way.time!r}, where {kinds[False]} has a date"
        problems = [Problem(kinds[True], found, "dates or numbers in all rows", "fix the rows")]
    refuse(cap_problems(problems, content.shown, "times that cannot be read"))
    return times


def _refuse_empty_parts(shown: str, found: SplitRows, way: SplitOptions) -> None:
    reasons = Counter(change.reason for change in found.changes)
    left_out = "; ".join(f"{pluralize(n, 'row')} {reason}" for reason, n in reasons.items())
    step = "add newer rows, or --alike 1, which drops equal questions alone" if way.time and reasons else ""
    step = "name another --group, or leave it out" if _IN_EARLIER_GROUP in reasons else step
    problems, step = list[Problem](), step or "add rows, or fewer parts"
    for name in (name for name, rows in found.parts.items() if not rows):
        lacking = f"no row for {name}{f' ({left_out})' if left_out else ''}"
        problems.append(Problem(shown, lacking, "rows in every part", step))
    if column := way.stratify if way.time else None:
        counts = {n: Counter(str(row.fields.get(column)) for row in rows) for n, rows in found.parts.items()}
        expected, step = "some of it in the time of each part", "name other --shares, or leave out --stratify"
        for name, count in counts.items():
            for value, n in sorted(sum(counts.values(), Counter[str]()).items()):
                if count and not count[value]:
                    lacking = f"{pluralize(n, 'row')} of the class {value!r}, none of them in {name}"
                    problems.append(Problem(f"{shown}, --stratify {column}", lacking, expected, step))
    refuse(cap_problems(problems, shown, "classes that are too small"))
