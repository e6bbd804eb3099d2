"""Classification head on the base or on an encoder of BERT's kind, with or without a low-rank adapter.

Invariant: it answers with a label that occurs in training and nothing else; the base is read as published.
Source: Devlin et al. 2019 (arXiv:1810.04805), section 4.1; PEFT's SEQ_CLS, trained by transformers' Trainer.
"""

from harness import training
from harness.plugins import AdapterShape, Method, MethodChecks


class Params(training.HeadParams):
    """The names of transformers' Trainer, and PEFT's for the adapter."""


def fit(context: training.FitContext, params: Params) -> training.Weights:
    """Train the head and save it under `head/`.

    Raises:
        CandidateFailed: out of memory, fewer than two labels, no text fits, or the loss was not a number.
    """
    folder = context.folder / training.HEAD
    made = training.train_head(context, params, folder)
    own = training.head_digest(folder, training.encoder_of(params.encoder, context.source))
    return training.Weights("head", own, context.folder, made)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="head",
    trains=True,
    draws_from="train",
    seeded=True,
    hooks=("penalty", "step", "arguments", "smoothing"),
    hooks_where={("train", "all"): ("prepare", "select")},
    loops=("training", "heads"),
    reads=training.encoder_digest,
    checks=MethodChecks(lambda recipe, *_: training.encoder_problems(Params(**recipe.params))),
    adapter=AdapterShape(training.adapter_parameters, training.lower_rank),
)
