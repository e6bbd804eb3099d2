"""Measured figures of a run and of its training: their names, headings, units and meanings.

Invariant: a figure is listed here alone, by the name of its field.
"""

from typing import NamedTuple


class Figure(NamedTuple):
    """A figure: the name of its field, its heading in tables, its unit, its meaning, and its type in SQL.

    A figure without a type is a curve or a note, which SQL has no column for.
    """

    name: str
    heading: str
    unit: str
    meaning: str
    type: str = "DOUBLE"


# Of a candidate's run, as it answers.
SERVING = (
    Figure("cost_per_1k_usd", "$/1k", "USD", "USD for 1,000 requests"),
    Figure("latency_p50_s", "p50", "s", "median time of a request that is sent alone"),
    Figure("latency_p95_s", "p95", "s", "time that 95 % of the requests that are sent alone keep"),
    Figure("requests_per_s", "requests a second", "1/s", "throughput when answered in batches"),
)
# Of a training.
TRAINING = (
    Figure("wall_s", "time", "s", "time of the training, a sweep's trials included"),
    Figure("train_loop_s", "time of the steps", "s", "time of the optimiser steps alone"),
    Figure("init_wall_s", "time of what it starts from", "s", "time of the training that it went on from"),
    Figure("n_steps", "steps", "", "optimiser steps", "BIGINT"),
    Figure(
        "n_skipped_steps", "steps whose gradients overflowed", "", "steps that changed no weight", "BIGINT"
    ),
    Figure("n_tokens", "tokens", "tokens", "tokens that were trained on, padding left out", "BIGINT"),
    Figure("tokens_per_s", "tokens a second", "tokens/s", "speed of the training loop"),
    Figure("n_examples", "texts", "", "texts that were trained on", "BIGINT"),
    Figure("n_pairs", "pairs", "", "preference pairs that were trained on", "BIGINT"),
    Figure("n_heldout", "rows held out", "rows", "pairs that were held out", "BIGINT"),
    Figure("n_dropped_too_long", "rows too long, left out", "rows", "rows that were too long", "BIGINT"),
    Figure("n_packs", "packs of rows", "", "packs of rows", "BIGINT"),
    Figure("n_processes", "processes", "", "processes that shared its steps", "BIGINT"),
    Figure("batch_size", "rows at once", "rows", "rows of a process in memory at once", "BIGINT"),
    Figure("accumulated_batches", "batches a step", "", "batches of a process in a step", "BIGINT"),
    Figure(
        "not_packed", "not packed, because it", "", "why rows were not packed though requested", "VARCHAR"
    ),
    Figure("n_trainable", "parameters trained", "", "parameters that were trained", "BIGINT"),
    Figure(
        "trainable_share",
        "share of the base's parameters",
        "share",
        "of the base's parameters, those that were trained",
    ),
    Figure("size_bytes", "size on disk", "bytes", "what the finished weights take on disk", "BIGINT"),
    Figure("base_size_bytes", "size of the base on disk", "bytes", "what the base takes on disk", "BIGINT"),
    Figure("peak_memory_gib", "peak memory, GiB", "GiB", "the largest memory that it held"),
    Figure("peak_includes", "peak memory includes", "", "what else the peak holds", "VARCHAR"),
    Figure(
        "waited_share", "share of the time that it waited for a processor", "share", "waited for a processor"
    ),
    Figure(
        "reward_model_accuracy", "held-out accuracy of the reward model", "share", "on its held-out pairs"
    ),
    Figure(
        "fit_key", "key of the weights", "", "the folder of its weights, runs/weights/<fit_key>", "VARCHAR"
    ),
    Figure("equal_rewards", "prompts with one reward for all answers", "share", "", ""),
    Figure("kl", "KL to the reference, nats a token", "nats", "", ""),
    Figure("heldout_accuracy", "held-out accuracy", "share", "", ""),
    Figure("heldout_margin", "held-out margin", "", "", ""),
)
