"""Processes that share one training: how they are started, what each reads, and the shards of each."""
