"""Paired statistics on arrays: intervals, tests, the bootstrap, and power.

Invariant: pure and seeded; ValueError for empty, non-finite or impossible input. An interval never collapses
to a point because no item differed. Rates and deltas are in [0, 1] and [−1, 1]; `delta` is new − base;
`alpha` is two-sided for intervals and one-sided for tests of a margin.
"""

# fmt: off
# isort: off
from harness.stats.agreement import (
    PoweredMean, Strength, WinRate, bradley_terry, cohen_kappa, krippendorff_alpha, labels_needed,
    prediction_powered_mean, rogan_gladen, win_rate,
)
from harness.stats.choosing import (
    MIN_SIZES, fit_power_law, hypervolume, pareto_front, perfect_information, sample_information,
)
from harness.stats.intervals import (
    TIE, Array, Bootstrap, Interval, Statistic, bca_interval, binomial_p, bootstrap, clopper_pearson,
    t_quantile, wilson, z_quantile,
)
from harness.stats.means import (
    MIN_CLUSTERS, Mean, cluster_df, clustered_contrast, clustered_mean, clustered_slope,
    count_differing_clusters, design_effect, effective_clusters, has_few_clusters, mover_mean,
    paired_delta, quadrature, t_interval,
)
from harness.stats.paired import (
    StratumFlips, inclusion_weights, mcnemar, neyman_allocation, noninferiority_power, paired_se,
    stratified_flips_interval, tango_interval, tango_regression_p,
)
from harness.stats.permutation_tests import (
    Weights, category_distances, gaussian_kernel, kernel_distances, permutation_p, rank_distances,
    split_weights, topic_power,
)
from harness.stats.sequential import (
    benjamini_hochberg, betting_mixture, cusum, holm, interim_bounds, log_mean_wealth,
    seed_effects,
)
from harness.stats.variation import (
    MIN_FOLDS, MIN_SEEDS, Variance, VarianceComponents, commonest, cross_validated_variance,
    detectable_mean, pass_at_k, satterthwaite, seed_variance, unique_share,
)
# isort: on
# fmt: on
