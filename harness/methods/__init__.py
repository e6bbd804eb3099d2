"""Methods, which make weights; one per file.

Invariant: a method declares itself as `METHOD` (see `plugins.Method`), and no other package refers to its
name; `fit(context, params) -> Weights` writes only into `context.folder`, and the same context and parameters
give the same weights.
"""
