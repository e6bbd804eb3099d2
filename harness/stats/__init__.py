"""Paired statistics on arrays: intervals, tests, the bootstrap, and power.

Invariant: pure and seeded. The same arrays give the same numbers, and nothing is read or written. An interval
never collapses to a point because no item differed; where a formula does that, its docstring says so and
names what to use instead. Rates and deltas are in [0, 1] and [−1, 1]; `delta` is new − base; `alpha` is
two-sided for intervals and one-sided for tests of a margin, as each docstring says.
"""

from harness.stats.agreement import cohen_kappa, rogan_gladen
from harness.stats.anytime import (
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
    count_differing_clusters,
    design_effect,
    effective_clusters,
    has_few_clusters,
    mover_mean,
    paired_delta,
    quadrature,
    t_interval,
)
from harness.stats.multiple_testing import benjamini_hochberg, holm
from harness.stats.paired import (
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
from harness.stats.prediction_powered import PoweredMean, labels_needed, prediction_powered_mean
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
    StratumFlips,
    inclusion_weights,
    neyman_allocation,
    stratified_flips_interval,
)
from harness.stats.value_of_information import perfect_information, sample_information
