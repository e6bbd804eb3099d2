"""Paired statistics on arrays: intervals, tests, the bootstrap, and what a sample can show.

Invariant: pure and seeded. The same arrays give the same numbers, nothing is read or
written, and an interval never collapses to a point because nothing was seen to differ
(where a formula does that, its docstring says so and names what to use instead).
Rates and deltas are in [0, 1] and [−1, 1]; `delta` is new − base; `alpha` is two-sided
for intervals and one-sided for tests of a margin, as each docstring says.
"""

from harness.stats.anytime import (
    ConfidenceSequence,
    Cusum,
    betting_process,
    betting_sequence,
    cusum,
    normal_mixture_radius,
    normal_mixture_rho,
    normal_mixture_sequence,
    sign_alarm,
    sign_e_value,
)
from harness.stats.bootstrap import Bootstrap, SignFlip, Statistic, bca_interval, bootstrap, sign_flip
from harness.stats.calibration import (
    bits_per_byte,
    brier_score,
    expected_calibration_error,
    kl_divergence,
    kl_sampled,
)
from harness.stats.diversity import commonest, distinct_n, signal_to_noise, unique_share
from harness.stats.forgetting import Continual, continual, retention
from harness.stats.group_sequential import alpha_spent, interim_bounds
from harness.stats.intervals import (
    TIE,
    Array,
    Interval,
    beta_interval,
    binomial_p,
    binomial_se,
    clopper_pearson,
    t_quantile,
    wilson,
    z_quantile,
)
from harness.stats.means import (
    Mean,
    clustered_mean,
    design_effect,
    differing_clusters,
    mover_mean,
    paired_delta,
    t_interval,
)
from harness.stats.multiple_testing import benjamini_hochberg, holm
from harness.stats.paired import (
    McNemar,
    mcnemar,
    tango_interval,
    tango_noninferiority_p,
    tango_regression_p,
    tango_z,
)
from harness.stats.pareto import hypervolume, pareto_front
from harness.stats.power import (
    detectable_delta,
    noninferiority_n,
    noninferiority_power,
    paired_n,
    paired_se,
    regression_power,
    score_variance,
)
from harness.stats.preference import (
    Strength,
    WinRate,
    bradley_terry,
    elo_of_rate,
    krippendorff_alpha,
    sign_test,
    win_rate,
)
from harness.stats.random_effects import (
    MIN_SEEDS,
    RandomEffects,
    random_effects,
    random_effects_interval,
    random_effects_p,
)
from harness.stats.scaling_law import MIN_SIZES, PowerLaw, fit_power_law
from harness.stats.survey import (
    Flips,
    difference_estimate,
    inclusion_weights,
    neyman_allocation,
    stratified_estimate,
    stratified_flips_interval,
)
from harness.stats.value_of_information import perfect_information, sample_information

__all__ = [
    "MIN_SEEDS",
    "MIN_SIZES",
    "TIE",
    "Array",
    "Bootstrap",
    "ConfidenceSequence",
    "Continual",
    "Cusum",
    "Flips",
    "Interval",
    "McNemar",
    "Mean",
    "PowerLaw",
    "RandomEffects",
    "SignFlip",
    "Statistic",
    "Strength",
    "WinRate",
    "alpha_spent",
    "bca_interval",
    "benjamini_hochberg",
    "beta_interval",
    "betting_process",
    "betting_sequence",
    "binomial_p",
    "binomial_se",
    "bits_per_byte",
    "bootstrap",
    "bradley_terry",
    "brier_score",
    "clopper_pearson",
    "clustered_mean",
    "commonest",
    "continual",
    "cusum",
    "design_effect",
    "detectable_delta",
    "difference_estimate",
    "differing_clusters",
    "distinct_n",
    "elo_of_rate",
    "expected_calibration_error",
    "fit_power_law",
    "holm",
    "hypervolume",
    "inclusion_weights",
    "interim_bounds",
    "kl_divergence",
    "kl_sampled",
    "krippendorff_alpha",
    "mcnemar",
    "mover_mean",
    "neyman_allocation",
    "noninferiority_n",
    "noninferiority_power",
    "normal_mixture_radius",
    "normal_mixture_rho",
    "normal_mixture_sequence",
    "paired_delta",
    "paired_n",
    "paired_se",
    "pareto_front",
    "perfect_information",
    "random_effects",
    "random_effects_interval",
    "random_effects_p",
    "regression_power",
    "retention",
    "sample_information",
    "score_variance",
    "sign_alarm",
    "sign_e_value",
    "sign_flip",
    "sign_test",
    "signal_to_noise",
    "stratified_estimate",
    "stratified_flips_interval",
    "t_interval",
    "t_quantile",
    "tango_interval",
    "tango_noninferiority_p",
    "tango_regression_p",
    "tango_z",
    "unique_share",
    "wilson",
    "win_rate",
    "z_quantile",
]
