"""Paired statistics on arrays: intervals, tests, the bootstrap, and what a sample can show.

Invariant: pure and seeded. The same arrays give the same numbers, nothing is read or
written, and an interval never collapses to a point because nothing was seen to differ
(where a formula does that, its docstring says so and names what to use instead).
Rates and deltas are in [0, 1] and [−1, 1]; `delta` is new − base; `alpha` is two-sided
for intervals and one-sided for tests of a margin, as each docstring says.
"""

from harness.stats.agreement import CorrectedRate, Kappa, cohen_kappa, rogan_gladen
from harness.stats.anytime import (
    Cusum,
    SharedEffects,
    betting_mixture,
    cusum,
    log_mean_wealth,
    seed_effects,
)
from harness.stats.bootstrap import Bootstrap, Statistic, bca_interval, bootstrap
from harness.stats.contrasts import clustered_contrast
from harness.stats.cross_validation import MIN_FOLDS, cross_validated_variance, fold_variance
from harness.stats.diversity import commonest, pass_at_k, signal_to_noise, unique_share
from harness.stats.group_sequential import alpha_spent, interim_bounds
from harness.stats.intervals import (
    TIE,
    Array,
    Interval,
    binomial_p,
    clopper_pearson,
    t_quantile,
    wilson,
    z_quantile,
)
from harness.stats.means import (
    MIN_CLUSTERS,
    Mean,
    cluster_df,
    clustered_mean,
    clustered_slope,
    design_effect,
    differing_clusters,
    effective_clusters,
    has_few_clusters,
    mover_mean,
    paired_delta,
    quadrature,
    t_interval,
)
from harness.stats.multiple_testing import benjamini_hochberg, holm
from harness.stats.paired import (
    McNemar,
    mcnemar,
    tango_interval,
    tango_regression_p,
    tango_z,
)
from harness.stats.pareto import hypervolume, pareto_front
from harness.stats.power import (
    noninferiority_power,
    paired_se,
    regression_power,
)
from harness.stats.prediction_powered import Powered, labels_needed, prediction_powered_mean
from harness.stats.preference import (
    Strength,
    WinRate,
    bradley_terry,
    krippendorff_alpha,
    win_rate,
)
from harness.stats.random_effects import (
    MIN_SEEDS,
    Variance,
    VarianceComponents,
    detectable_mean,
    satterthwaite,
    seed_variance,
)
from harness.stats.scaling_law import MIN_SIZES, PowerLaw, fit_power_law
from harness.stats.survey import (
    Flips,
    inclusion_weights,
    neyman_allocation,
    stratified_flips_interval,
)
from harness.stats.value_of_information import perfect_information, sample_information

__all__ = [
    "MIN_CLUSTERS",
    "MIN_FOLDS",
    "MIN_SEEDS",
    "MIN_SIZES",
    "TIE",
    "Array",
    "Bootstrap",
    "CorrectedRate",
    "Cusum",
    "Flips",
    "Interval",
    "Kappa",
    "McNemar",
    "Mean",
    "PowerLaw",
    "Powered",
    "SharedEffects",
    "Statistic",
    "Strength",
    "Variance",
    "VarianceComponents",
    "WinRate",
    "alpha_spent",
    "bca_interval",
    "benjamini_hochberg",
    "betting_mixture",
    "binomial_p",
    "bootstrap",
    "bradley_terry",
    "clopper_pearson",
    "cluster_df",
    "clustered_contrast",
    "clustered_mean",
    "clustered_slope",
    "cohen_kappa",
    "commonest",
    "cross_validated_variance",
    "cusum",
    "design_effect",
    "detectable_mean",
    "differing_clusters",
    "effective_clusters",
    "fit_power_law",
    "fold_variance",
    "has_few_clusters",
    "holm",
    "hypervolume",
    "inclusion_weights",
    "interim_bounds",
    "krippendorff_alpha",
    "labels_needed",
    "log_mean_wealth",
    "mcnemar",
    "mover_mean",
    "neyman_allocation",
    "noninferiority_power",
    "paired_delta",
    "paired_se",
    "pareto_front",
    "pass_at_k",
    "perfect_information",
    "prediction_powered_mean",
    "quadrature",
    "regression_power",
    "rogan_gladen",
    "sample_information",
    "satterthwaite",
    "seed_effects",
    "seed_variance",
    "signal_to_noise",
    "stratified_flips_interval",
    "t_interval",
    "t_quantile",
    "tango_interval",
    "tango_regression_p",
    "tango_z",
    "unique_share",
    "wilson",
    "win_rate",
    "z_quantile",
]
