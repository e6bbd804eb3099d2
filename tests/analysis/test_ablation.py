"""Ablation tables: grids against their first member, and recipes over several seeds."""

import io
from statistics import fmean

import pytest
from fake_facts import alternatives, candidate, comparison, make_fine_tune
from rich.console import Console
from scipy import stats as scipy_stats

from harness.analysis.ablation import ablations
from harness.analysis.comparison import RecipeDifference
from harness.analysis.seeds import summarize_seeds
from harness.report import ExperimentReport, experiment_document, markdown, terminal, to_json
from harness.stats import Variance

DELTAS = {"lora[r=8]": 0.02, "lora[r=16]": 0.08, "lora[r=64]": 0.05}


def grid(*seeds, names=("lora[r=4]", *DELTAS), **changes):
    return [make_fine_tune(n, 0.7, 0.05, run_id=f"{n}-{s}", seed=s, **changes) for n in names for s in seeds]


def pair(base, new):
    """Compare two runs: the new one is better by its value in DELTAS plus 0.01 per seed."""
    return comparison(DELTAS[new.name] + 0.01 * new.seed, 0.05, estimator="bca")


def means(base, new):
    """Compare recipes whose seeds all score as in `pair`, with a standard error of 0.05/1.96."""
    items = Variance((0.05 / 1.959964) ** 2, None)
    delta = fmean(pair(base[0], f).delta for f in new)
    return RecipeDifference(delta, items, items, 200)


def table(facts):
    (ablation,) = ablations(facts, pair, means)
    return ablation


def print_report(report):
    stream = io.StringIO()
    terminal(report, Console(file=stream, width=100), verbose=True)
    return stream.getvalue()


def report(facts, **changes):
    fields = {"ablations": ablations(facts, pair, means), "seeds": summarize_seeds(facts)}
    return ExperimentReport("e", "m", "exact_match", tuple(facts), **(fields | changes))


def test_every_member_is_compared_with_the_first_and_p_values_are_corrected():
    ablation = table(grid(0))
    assert (ablation.grid, ablation.reference, ablation.n_tests) == ("lora", "lora[r=4]", 3)
    assert [f.candidate for f in ablation.factors] == ["lora[r=4]", *DELTAS]
    assert [f.difference and f.difference.score for f in ablation.factors] == [None, 0.02, 0.08, 0.05]
    raw, corrected = zip(*((f.p, f.p_adjusted) for f in table(grid(0)).factors[1:]), strict=True)
    # z = delta · 1.96 / 0.05; Benjamini-Hochberg over three: the smallest times 3, the next times 3/2.
    assert raw == pytest.approx((0.4331, 0.00171, 0.0500), abs=1e-3)
    assert corrected == pytest.approx((0.4331, 0.00514, 0.0750), abs=1e-3)
    assert ablations([*alternatives(), *grid(0, names=("lora[r=4]",))], pair, means) == ()


def test_the_winner_of_a_grid_is_that_of_validation_and_one_seed_leaves_its_variance_unknown():
    facts = grid(0)
    facts[1] = make_fine_tune("lora[r=8]", 0.7, 0.05, validation=0.9)
    assert table(facts).chosen == "lora[r=8]"
    assert "best on validation: r=8" in " ".join(print_report(report(facts)).split())

    shots = [candidate(f"few-shot[shots={k}]", 0.5) for k in (4, 8)]
    (untrained,) = ablations(shots, lambda base, new: comparison(0.01), means)
    assert (table(grid(0)).seed_variance_known, untrained.seed_variance_known) == (False, True)
    assert "training-seed variance unknown (fewer than 3 seeds)" in print_report(report(grid(0)))


def test_from_three_seeds_on_what_varies_between_the_seeds_of_both_is_added():
    arms = [(n, *seed) for n in ("lora[r=4]", "lora[r=16]") for seed in enumerate((0.70, 0.72, 0.74))]
    fine_tunes = [make_fine_tune(n, score, 0.05, run_id=f"{n}-{seed}", seed=seed) for n, seed, score in arms]
    factor = table(fine_tunes).factors[1]
    items, seeds = 0.05 / 1.959964, 0.02 / 3**0.5
    se = (items**2 + 2 * seeds**2) ** 0.5
    df = se**4 / (2 * seeds**4 / 2)
    t = scipy_stats.t.ppf(0.975, df)
    assert factor.n_seeds == 3
    assert factor.difference.score == pytest.approx(0.09)
    assert (factor.difference.low, factor.difference.high) == pytest.approx((0.09 - t * se, 0.09 + t * se))
    assert factor.p == pytest.approx(2 * scipy_stats.t.sf(0.09 / se, df))


def test_the_table_stands_under_the_main_one_and_in_markdown_and_json():
    rep = report(grid(0))
    lines = print_report(rep).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("lora  "))
    assert "p corrected" in lines[row]
    assert "(reference)" in lines[row + 1]
    assert lines[row + 3].split()[:7] == ["r=16", "70.0", "+8.0", "[+3,", "+13]", "0.002", "0.005"]
    assert max(map(len, lines)) <= 100
    assert "## Ablation: lora" in markdown(experiment_document(rep))
    assert "| r=16 | 70.0 | +8.0 [+3, +13] | 0.002 | 0.005 | 0.50 | – |" in markdown(experiment_document(rep))
    assert to_json(rep)["ablations"][0]["factors"][2]["p_adjusted"] == pytest.approx(0.00514, abs=1e-4)
