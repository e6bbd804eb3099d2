"""Language models: what generates and scores text, and how it is batched on a device.

Invariant: token ids go in and come out; only `tokenization` makes them of a text.
"""
