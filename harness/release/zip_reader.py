"""Members of a zip archive, also those compressed by Zstandard, which zipfile reads from Python 3.14 on.

Invariant: what is returned has the checksum that the archive names.
Source: PKWARE's application note 6.3.10, section 4.3.7 (local headers) and 4.4.5 (method 93).
"""

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_ZSTANDARD = 93
_MOST_BYTES = 2**31  # of one member: more is a damaged size
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and of the extra field


def member_names(path: Path) -> list[str]:
    """List the members of an archive.

    Raises:
        zipfile.BadZipFile: the archive is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as raw:
        return _opened(raw).namelist()


def read_members(path: Path, wanted: Callable[[str], bool]) -> list[bytes]:
    """Return the members whose name is wanted, in the archive's order.

    Raises:
        zipfile.BadZipFile: the archive is damaged, or compressed in another way.
        OSError: it cannot be read.
    """
    with path.open("rb") as raw:
        archive = _opened(raw)
        return [_member(archive, raw, info) for info in archive.infolist() if wanted(info.filename)]


def _opened(raw: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except NotImplementedError as error:  # a version of the format from the future, or a damaged byte
        raise zipfile.BadZipFile(str(error)) from error


def _member(archive: zipfile.ZipFile, raw: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type != _ZSTANDARD:
        try:
            return archive.read(info)
        except (NotImplementedError, RuntimeError, zlib.error) as error:
            raise zipfile.BadZipFile(f"{info.filename}: {error}") from error
    if info.file_size > _MOST_BYTES:
        raise zipfile.BadZipFile(f"{info.filename}: more than {_MOST_BYTES} bytes")
    data = _zstandard(_compressed(raw, info), info)
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise zipfile.BadZipFile(f"{info.filename}: bad checksum")
    return data


def _compressed(raw: BinaryIO, info: zipfile.ZipInfo) -> bytes:
    raw.seek(info.header_offset)
    header = raw.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"{info.filename}: no local header")
    _, n_name, n_extra = _LOCAL_HEADER.unpack(header)
    raw.seek(n_name + n_extra, 1)
    return raw.read(info.compress_size)


def _zstandard(data: bytes, info: zipfile.ZipInfo) -> bytes:
    import pyarrow

    try:
        out: bytes = pyarrow.decompress(data, info.file_size, codec="zstd", asbytes=True)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise zipfile.BadZipFile(f"{info.filename}: {error}") from error
    return out
