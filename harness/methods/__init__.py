"""Methods, which make weights, each declared as `METHOD` (see `plugins.Method`).

Invariant: `fit(context, params) -> Weights` writes only into `context.folder`; the same input gives the same
weights. It raises CandidateFailed if they cannot be made: no memory, no row that fits, a loss
that is not a number. No other package refers to a method's name.
"""
