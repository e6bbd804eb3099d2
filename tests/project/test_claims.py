"""The claims study: its intervals, its page, and that stored claims are not measured again."""

import math

import pytest

from harness import stats
from reports.studies.claims import __main__ as study
from reports.studies.claims.catalog import CLAIMS, OPEN
from reports.studies.claims.claim import ClaimResult, estimate_paired_ratio, judge
from reports.studies.claims.kept import keep, read, write
from reports.studies.claims.page import page

CHEAP = "memory-of-qlora"
FOUND = ClaimResult("two times", "holds", {"ratio": 2.0}, "by hand")


def test_a_ratio_is_the_geometric_mean_of_pairs_with_the_interval_of_its_logarithm():
    ratio = estimate_paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 2.0])
    logs = [math.log(2), math.log(2), math.log(4)]
    mean = sum(logs) / 3
    sd = math.sqrt(sum((x - mean) ** 2 for x in logs) / 2)
    assert ratio.mean == pytest.approx(math.exp(mean))
    assert ratio.high == pytest.approx(math.exp(mean + stats.t_quantile(0.975, 2) * sd / math.sqrt(3)))
    assert ratio.low < ratio.mean < ratio.high


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.02, 0.1, "holds"), (-0.2, -0.06, "does not hold here"), (-0.1, 0.1, "not decided")],
)
def test_a_claim_holds_where_its_whole_interval_bears_it_out(low, high, verdict):
    assert judge(low, high, least=-0.05) == verdict


def test_what_is_kept_is_read_as_it_was_written_and_an_unknown_name_refused(tmp_path):
    stored_claim = keep(FOUND, 1.0, "CPU", "2026-11-22")
    write(tmp_path / "claims.json", {CHEAP: stored_claim})
    assert read(tmp_path / "claims.json") == {CHEAP: stored_claim}
    assert read(tmp_path / "none.json") == {}
    with pytest.raises(SystemExit, match="2"):
        study.main(["rank-9", "--reports", str(tmp_path)])
    names = [entry.name for entry in (*CLAIMS, *OPEN)]
    assert len(set(names)) == len(names)
    assert all(claim.minutes < 60 for claim in CLAIMS)


def test_the_page_shows_what_was_measured_and_what_was_not():
    stored_claim = keep(FOUND, 61.2, "CPU, 2 threads", "2026-11-22")
    text = page(CLAIMS, OPEN, {CHEAP: stored_claim})
    (row,) = (line for line in text.splitlines() if "| two times |" in line)
    assert row.endswith("| two times | holds |")
    measured_part, open_part = text.split("## Not measured here")
    assert f"**{CHEAP}**: by hand. CPU, 2 threads, 2026-11-22; the call took 61 s." in measured_part
    assert all(claim.says in open_part for claim in CLAIMS if claim.name != CHEAP)
    assert all(entry.needs in open_part for entry in OPEN)
    assert "1 claim measured. Verdicts: holds: 1." in text
