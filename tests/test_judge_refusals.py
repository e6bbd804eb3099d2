"""What a judge may not do: decide by other grades than the files name, unseen costs, or what leaves the machine."""

import pytest
from test_judges import JUDGE, RUBRIC, desk  # noqa: F401 (the fixture)

from harness import release
from harness.errors import IncompatibleRuns

pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_gate_refuses_grades_by_another_rubric_or_judge_than_the_files_name(desk):  # noqa: F811
    d = desk(extra="gate: {uncalibrated_judge: allow, target: {min: 0.4}}\n")
    d.compare()
    release.gate_stored(d.path, "plain")
    judge = JUDGE.format(url=d.judge.url, timeout=5)
    for other in (RUBRIC + judge.replace("tiny", "large"), f"criteria: The reply is short.\n{judge}"):
        d.rubric(other)
        with pytest.raises(IncompatibleRuns, match=r"by another judge or rubric.*next: harness compare"):
            release.gate_stored(d.path, "plain")
    d.compare()
    release.gate_stored(d.path, "plain")
