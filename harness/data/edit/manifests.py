"""Manifests of edited files, read back: who labelled the rows, what they cost, how they were parted.

Invariant: a file without a manifest says nothing of itself; a damaged one is a UserError, never passed over.
A payment is named by the rows that it was made for, so that it counts once, however many files came of these.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from harness.data import readers
from harness.errors import Problem, UserError
from harness.records import checksum, parse_json
from harness.spec import HUB

MANIFEST = ".manifest.json"
SPLIT_MANIFEST = f"split{MANIFEST}"
TAUGHT = "a teacher's"


class Payment(NamedTuple):
    """Payment for the rows of a file, by its sha256; `share` in [0, 1] is the part of it that counts."""

    rows: str
    cost_usd: float
    share: float = 1.0


def take_share(payments: Iterable[Payment], share: float) -> tuple[Payment, ...]:
    """Return the payments for so large a share of what they stand for; none where nothing is left."""
    held = min(max(share, 0.0), 1.0)
    return tuple(one._replace(share=one.share * held) for one in payments if held)


def join_payments(payments: Iterable[Payment]) -> tuple[Payment, ...]:
    """Join payments for the same rows, of which no more counts than the whole."""
    found: dict[str, Payment] = {}
    for one in payments:
        known = found.get(one.rows)
        share = min(1.0, one.share + (known.share if known else 0.0))
        found[one.rows] = one._replace(share=share)
    return tuple(found.values())


def total_usd(payments: Iterable[Payment]) -> float:
    """Add up payments in USD, those for the same rows once."""
    return sum(one.cost_usd * one.share for one in join_payments(payments))


class _SplitPart(NamedTuple):
    """File that an edit wrote, with its number of rows and the digest of its content."""

    file: str
    rows: int
    sha256: str


def manifest_of(path: str) -> dict[str, Any] | None:
    """Read the manifest beside a file, or the one it was packed from, or of the split that it is of.

    A split's manifest is that of the files that it names, and of those with their content. Of a link it is
    the one beside the link, or else beside the file that it leads to.

    Raises:
        UserError: the manifest beside the file cannot be read.
    """
    if path.startswith(HUB):
        return None
    places = dict.fromkeys((Path(path), Path(path).resolve()))
    return next((found for file in places if (found := _manifest_beside(file))), None)


def _manifest_beside(file: Path) -> dict[str, Any] | None:
    for name in dict.fromkeys((file.name, file.name.removesuffix(".gz"))):
        if (there := file.with_name(name + MANIFEST)).is_file():
            return _read_manifest(there)
    if (there := file.with_name(SPLIT_MANIFEST)).is_file():
        found = _read_manifest(there)
        return found if _part_of(file, found) else None
    return None


def licenses_of(path: str) -> list[str]:
    """List the licences of a file, as the manifest beside it says, or of a data set, as its card states."""
    if found := manifest_of(path):
        return list(found["licenses"])
    if not (path.startswith(HUB) or Path(path).is_dir()):
        return []
    card = _card_of(readers.hub_source(path)[0] if path.startswith(HUB) else path)
    stated = card.get("license") or []
    stated = stated if isinstance(stated, list) else [stated]
    return [str(card.get("license_name") or one) if one == "other" else str(one) for one in stated]


def _card_of(source: str) -> dict[str, Any]:
    """Read what heads the README.md of a data set, in a folder or on the hub; nothing where there is none."""
    from huggingface_hub import hf_hub_download, metadata_load

    file = Path(source, "README.md")
    try:
        if not Path(source).is_dir():
            file = Path(hf_hub_download(source, file.name, repo_type="dataset"))
        return metadata_load(file) or {}
    except (OSError, ValueError):  # a card is no part of the rows
        return {}


def is_taught(path: str) -> bool:
    """Tell whether a teacher labelled every row of a file, as the manifest beside it says."""
    return (manifest_of(path) or {}).get("labels") == TAUGHT


def payments_for(path: str) -> tuple[Payment, ...]:
    """List what was paid for the rows of a file, as its manifest says; a part of a split has its share."""
    found = manifest_of(path)
    if not found:
        return ()
    parts, own = _parts(found), _part_of(Path(path), found)
    share = own.rows / sum(part.rows for part in parts) if own and len(parts) > 1 else 1.0
    return take_share(_payments(found), share)


def n_rows_of(path: str) -> int | None:
    """Return the number of rows of a file, as the manifest beside it says; None without one."""
    found = manifest_of(path)
    if not found:
        return None
    return (_part_of(Path(path), found) or _parts(found)[0]).rows


def find_grouping_column(path: str) -> str | None:
    """Return the column by whose values a split kept rows together, where a file is a part of one."""
    found = manifest_of(path) or {}
    return (
        (found.get("parameters") or {}).get("group") if found.get("command") == "harness data split" else None
    )


def _part_of(file: Path, found: dict[str, Any]) -> _SplitPart | None:
    """Return what a manifest says of a file that it names, or whose content it names."""
    parts = _parts(found)
    named = next((part for part in parts if part.file == file.name), None)
    if named is None and file.is_file():
        content = checksum(file)
        named = next((part for part in parts if part.sha256 == content), None)
    return named


def _parts(found: dict[str, Any]) -> tuple[_SplitPart, ...]:
    return tuple(_SplitPart(**one) for one in found["outputs"])


def _payments(found: dict[str, Any]) -> tuple[Payment, ...]:
    return tuple(Payment(**one) for one in found.get("paid", ()))


def _read_manifest(there: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_json(there.read_bytes())
        lists = [found["licenses"], found["notes"], found["outputs"]] if _parts(found) else []
        _payments(found)
    except (ValueError, LookupError, TypeError):
        lists = []
    if not lists or not all(isinstance(one, list) for one in lists):
        expected = "a manifest as harness data writes them"
        step = "remove it, or write it again"
        raise UserError(Problem(readers.display_path(str(there)), "a damaged manifest", expected, step))
    return found
