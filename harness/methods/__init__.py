"""Ways to make weights, one a file.

Invariant: a method exports `Params` and `fit(context, params) -> Weights`; it writes only into
`context.folder`, and the same context and parameters give the same weights.
"""
