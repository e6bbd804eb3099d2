"""Files of a model that retrieves, reranks or scores, as what is computed with them depends on them.

Invariant: two folders of equal files have one digest, wherever they lie.
"""

from pathlib import Path

from harness.records import checksum, digest


def source_digest(model: str) -> str:
    """Digest the files of a model, a folder or a hub id; "" where they are not on this machine."""
    files = sorted(path for path in Path(model).rglob("*") if path.is_file())
    return digest([[file.name, checksum(file)] for file in files]) if files else _revision(model)


def _revision(model: str) -> str:
    """Return the cached commit of a hub id, whose folder is named by it; "" where none is cached."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json") if "/" in model else None
    return Path(found).parent.name if isinstance(found, str) else ""
