"""What has begun and not finished, by name: what it has stored so far is still wanted.

Invariant: whatever ends a process, the name of what it was at stays until that has been finished.

    runs/.begun/<name>      an empty file
"""

from harness.store.layout import Store, is_bare_name, write_whole


def begin(store: Store, name: str) -> None:
    """Note that something has begun.

    Raises:
        ValueError: the name cannot name a file.
        HarnessError: the disk is full.
    """
    if not is_bare_name(name):
        raise ValueError(f"{name!r} cannot name what has begun")
    write_whole(store, store.folder / ".begun" / name, "")


def end(store: Store, name: str) -> None:
    """Note that something is finished, or given up."""
    (store.folder / ".begun" / name).unlink(missing_ok=True)


def begun(store: Store) -> list[str]:
    """List what has begun and not finished."""
    return sorted(path.name for path in (store.folder / ".begun").glob("*"))
