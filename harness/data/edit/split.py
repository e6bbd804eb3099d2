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
from harness.data.column_roles import Roles, read_question_and_answers
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
    """The rows of every part that has a share, in the order of the file, and the changes of other rows."""

    parts: dict[str, list[Row]]
    changes: list[Change]


def split(content: Rows, roles: Roles, options: SplitOptions) -> SplitRows:
    """Split rows; parts that cannot be made as the options say are refused."""
    check_way(options)
    source = content._replace(rows=[row for row in content.rows if not splits.is_augmented(row)])
    if not source.rows:
        raise UserError(splits.phrase_only_augmented(content.shown))
    if options.folds and len(source.rows) < len(content.rows):
        step = "split the rows that they were made from, and augment each fold's training rows"
        raise UserError(content.shown, "augmented rows", "folds of rows that are tested", step)
    questions = [read_question_and_answers(row, roles).whole for row in source.rows]
    split_rows = _split_by_time if options.time else _split_at_random
    result = split_rows(source, questions, options)
    if origins_of := splits.origins(content.rows):
        # Augmented rows are trained on with their originals, unless another part has a similar question.
        changes = {change.where: change for change in result.changes}
        trained_places = {row.where for row in result.parts["train"]}
        for where, origins in origins_of.items():
            if not all(origin.places for origin in origins):
                changes[where] = Change(where, "dropped", ("augmented from a row that is not in the file",))
            elif place := next((p for o in origins for p in o.places if p not in trained_places), None):
                reason = "augmented from a row that is not trained on"
                changes[where] = Change(where, "dropped", (reason,), place)
        augmented = [row for row in content.rows if splits.is_augmented(row)]
        other_rows = [row for name, part in result.parts.items() if name != "train" for row in part]
        texts = {row.where: read_question_and_answers(row, roles).whole for row in content.rows}
        new_texts, other_texts = ([texts[row.where] for row in group] for group in (augmented, other_rows))
        matches = _nearest(new_texts, other_texts, options.alike, [*texts.values()])
        for row, match in zip(augmented, matches, strict=True):
            if match:
                reason = "alike to a question of another part"
                changes[row.where] = Change(row.where, "dropped", (reason,), other_rows[match.row].where)
        trained_places |= origins_of.keys() - changes.keys()
        train_rows = [row for row in content.rows if row.where in trained_places]
        ordered_changes = [changes[row.where] for row in content.rows if row.where in changes]
        result = SplitRows({**result.parts, "train": train_rows}, ordered_changes)
    _refuse_empty_parts(content.shown, result, options)
    return result


def keep_clusters(options: SplitOptions, content: Rows) -> SplitOptions:
    """Group by the rows' `cluster` column if no other is named, as a comparison does."""
    has_some = any(row.fields.get(CLUSTER) not in (None, "") for row in content.rows)
    return options._replace(group=CLUSTER) if options.group is None and has_some else options


def check_way(options: SplitOptions) -> None:
    """Refuse shares that do not add up, and impossible folds."""
    shares = options.shares
    if options.folds is None:
        is_wrong = len(shares) != len(PARTS) or not all(0 <= share < 1 for share in shares) or shares[0] == 0
        if is_wrong or abs(sum(shares) - 1) > 1e-6:
            found = f"{','.join(map(plain, shares))}, which add up to {sum(shares):g}"
            expected = "shares of train, validation and test that add up to 1, such as 0.8,0.1,0.1"
            raise UserError("--shares", found, expected, "only validation and test may be 0")
    elif options.folds < 2:
        raise UserError("--folds", str(options.folds), "2 folds or more", "such as --folds 5")
    elif options.time or shares != SHARES:
        option = f"--time {options.time}" if options.time else f"--shares {','.join(map(plain, shares))}"
        raise UserError("--folds", f"{option} as well", "folds of one size", "leave one out")


def odd_shares(result: SplitRows, options: SplitOptions) -> Iterator[str]:
    """Name parts that are far from their shares because groups cannot be divided."""
    sizes = {name: sum(not splits.is_augmented(row) for row in rows) for name, rows in result.parts.items()}
    for name, share in options.parts.items():
        actual_share = sizes[name] / max(1, sum(sizes.values()))
        if abs(actual_share - share) > _FAR:
            shares = f"{100 * actual_share:.0f} % of the rows, not {100 * share:.0f} %"
            yield f"{name} has {shares}: rows that belong together cannot be parted"


def _split_at_random(content: Rows, questions: list[str], options: SplitOptions) -> SplitRows:
    """Draw test and validation by whole groups; rows that are alike, also through others, are joined."""
    # The kind of a question is the first row with an equal or similar one.
    kinds, first_kind = list(range(len(questions))), dict[str, int]()
    for first_row, near in near_duplicates(questions, threshold=options.alike) if options.alike < 1 else ():
        for match in near:
            kinds[match.row] = first_row
    texts = map(fold_text, questions)
    kinds = [first_kind.setdefault(text, kinds[i]) if text else kinds[i] for i, text in enumerate(texts)]
    while True:
        parts = _draw_parts(content, kinds, options)
        alike_pairs = list(_alike_across(parts, questions, options.alike))
        if not alike_pairs:
            rows = {name: [content.rows[i] for i in part] for name, part in parts.items()}
            return SplitRows(rows, changes=[])
        # Rows of one kind, and those alike across parts, get their first kind.
        marks = [[("kind", str(kind))] for kind in kinds]
        for number, pair in enumerate(alike_pairs):
            for i in pair:
                marks[i].append(("pair", str(number)))
        for group in splits.join(marks):
            lowest_kind = min(kinds[i] for i in group)
            for i in group:
                kinds[i] = lowest_kind


def _draw_parts(content: Rows, kinds: Sequence[int], options: SplitOptions) -> dict[str, list[int]]:
    """Return the indices of every part; rows of one kind or of one group stay together."""
    # Rows as examples: the kind is the question, the group the cluster, the class the slice.
    rows = list[SourcedExample]()
    for i, row in enumerate(content.rows):
        group = options.group and row.fields.get(options.group)
        cluster = f"row {i}" if group in (None, "") else f"group {group}"
        stratum = str(row.fields.get(options.stratify)) if options.stratify else ""
        question = ({"role": "user", "content": str(kinds[i])},)
        rows.append(SourcedExample(Example(str(i), question, cluster=cluster, slice=stratum), row.where))
    groups, names = splits.groups_of([row.example for row in rows]), list(options.parts)
    if len(groups) < len(names):
        found = f"{pluralize(len(groups), 'group')} of rows that belong together or are alike"
        step = "add rows, or raise --alike, or name another --group"
        raise UserError(content.shown, found, f"at least {len(names)}, one a part", step)
    if options.folds:
        part_rows = splits.deal(rows, options.folds, random.Random(f"{options.seed}/folds"))
    else:
        train, part_rows, remaining_share = rows, list[list[SourcedExample]](), 1.0
        for n_before, name in reversed(list(enumerate(options.parts))[1:]):
            rng, share = random.Random(f"{options.seed}/{name}"), options.parts[name] / remaining_share
            train, part = splits.set_aside(train, rng, share=share, leave=n_before)
            part_rows.insert(0, part)
            remaining_share -= options.parts[name]
        part_rows.insert(0, train)
    if options.stratify:
        part_rows, problems = splits.spread_labels(rows, part_rows), list[Problem]()
        counts = [Counter(row.example.slice for row in part) for part in part_rows]
        labels = splits.labels_of(rows, groups)
        for value, n in sorted(sum(counts, Counter[str]()).items()):
            if lacking := [name for name, count in zip(names, counts, strict=True) if not count[value]]:
                n_groups = pluralize(sum(value in group for group in labels), "group")
                found = f"{pluralize(n, 'row')} of the class {value!r}, none of them in {', '.join(lacking)}"
                expected = f"every class in every part; rows that belong together give {n_groups} of it"
                step = "add rows of it, drop or rename the class, or leave out --stratify"
                where = f"{content.shown}, --stratify {options.stratify}"
                problems.append(Problem(where, found, expected, step))
        refuse(cap_problems(problems, content.shown, "classes that are too small"))
    return {name: [int(row.example.id) for row in part] for name, part in zip(names, part_rows, strict=True)}


def _alike_across(
    parts: Mapping[str, list[int]], questions: Sequence[str], alike: float
) -> Iterator[tuple[int, int]]:
    """Yield rows of two parts whose questions are alike, each with the nearest of an earlier part."""
    earlier: list[int] = []
    for part in parts.values():
        part_questions, earlier_questions = ([questions[i] for i in indices] for indices in (part, earlier))
        matches = _nearest(part_questions, earlier_questions, alike, questions)
        yield from ((i, earlier[match.row]) for i, match in zip(part, matches, strict=True) if match)
        earlier += part


def _nearest(
    questions: Sequence[str], known_questions: Sequence[str], alike: float, all_questions: Sequence[str]
) -> list[TextMatch | None]:
    """Return for each question the most similar known one; with `alike` 1 the first equal one."""
    if alike < 1:
        return nearest(questions, known_questions, threshold=alike, among=all_questions)
    known_texts = [*enumerate(map(fold_text, known_questions))]
    index_by_text = {text: i for i, text in reversed(known_texts) if text}
    indices = (index_by_text.get(fold_text(question)) for question in questions)
    return [None if index is None else TextMatch(index, 1.0) for index in indices]


def _split_by_time(content: Rows, questions: list[str], options: SplitOptions) -> SplitRows:
    """Cut at two times, ties in the earlier part; rows that repeat an earlier part's are dropped."""
    # The time of every row, in seconds or as its number; a time without a zone is UTC.
    times, problems, first_places = list[float](), list[Problem](), dict[bool, str]()
    values = [row.fields.get(options.time or "") for row in content.rows]
    with_days = all(map(is_day, filter(EIGHT_DIGITS.fullmatch, map(str, values))))
    for row, value in zip(content.rows, values, strict=True):
        try:
            time, is_number = read_moment(value, options.time_format, with_days=with_days)
            times.append(time)
            first_places.setdefault(is_number, row.where)
        except (ValueError, OverflowError):
            is_empty = value is None or not str(value).strip()
            found = f"no time in {options.time!r}"
            found = found if is_empty else f"{value!r} in {options.time!r}, which is not a time"
            problems.append(Problem(row.where, found, _TIMES, "fix the row, or drop it"))
    if len(first_places) > 1 and not problems:
        found = f"a number in {options.time!r}, where {first_places[False]} has a date"
        problems = [Problem(first_places[True], found, "dates or numbers in all rows", "fix the rows")]
    refuse(cap_problems(problems, content.shown, "times that cannot be read"))
    order = sorted(range(len(times)), key=times.__getitem__)
    parts: dict[str, list[int]] = {}
    start, share = 0, 0.0
    for name, part_share in options.parts.items():
        share += part_share
        end = round(share * len(order))
        while 0 < end < len(order) and times[order[end]] == times[order[end - 1]]:
            end += 1
        parts[name], start = sorted(order[start:end]), max(start, end)
    changes: dict[int, Change] = {}
    alike = dict(_alike_across(parts, questions, options.alike))
    group_values = [options.group and row.fields.get(options.group) for row in content.rows]
    groups = ["" if group is None else str(group) for group in group_values]
    row_by_group: dict[str, int] = {}  # row of each group in an earlier part
    for part in parts.values():
        for i in part:
            earlier = alike.get(i, row_by_group.get(groups[i]))
            if earlier is not None:
                reason = "alike to a question of an earlier part" if i in alike else _IN_EARLIER_GROUP
                changes[i] = Change(content.rows[i].where, "dropped", (reason,), content.rows[earlier].where)
        row_by_group = {groups[i]: i for i in part if groups[i]} | row_by_group
    kept_rows = {name: [content.rows[i] for i in part if i not in changes] for name, part in parts.items()}
    return SplitRows(kept_rows, [changes[i] for i in sorted(changes)])


def _refuse_empty_parts(shown_path: str, result: SplitRows, options: SplitOptions) -> None:
    reasons = Counter(change.reason for change in result.changes)
    left_out = "; ".join(f"{pluralize(n, 'row')} {reason}" for reason, n in reasons.items())
    step = (
        "add newer rows, or --alike 1, which drops equal questions alone" if options.time and reasons else ""
    )
    step = "name another --group, or leave it out" if _IN_EARLIER_GROUP in reasons else step
    problems, step = list[Problem](), step or "add rows, or fewer parts"
    for name in (name for name, rows in result.parts.items() if not rows):
        problem = f"no row for {name}{f' ({left_out})' if left_out else ''}"
        problems.append(Problem(shown_path, problem, "rows in every part", step))
    if column := options.stratify if options.time else None:
        counts = {n: Counter(str(row.fields.get(column)) for row in rows) for n, rows in result.parts.items()}
        expected, step = "some of it in the time of each part", "name other --shares, or leave out --stratify"
        for name, count in counts.items():
            for value, n in sorted(sum(counts.values(), Counter[str]()).items()):
                if count and not count[value]:
                    problem = f"{pluralize(n, 'row')} of the class {value!r}, none of them in {name}"
                    problems.append(Problem(f"{shown_path}, --stratify {column}", problem, expected, step))
    refuse(cap_problems(problems, shown_path, "classes that are too small"))
