"""A process that is killed at one of its file operations, counted below a folder.

Invariant: an operation is counted when Python announces it (`sys.addaudithook`), before it happens: the
process ends without it or, if it opens a file to write, with an empty new file. Files that libraries such as
DuckDB and safetensors write without Python are announced only when renamed.
"""

import os
import signal

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killer:
    """Hook that counts file operations below a folder, and ends its process at the `at`-th.

    With `at` 0 the process is not ended, and the file `counted` gets a letter per operation, w if a file is
    opened to write. With `begun` the file of such an operation is opened before the end.
    """

    def __init__(self, below: str, at: int = 0, *, begun: bool = False, counted: str = "") -> None:
        self.below, self.at, self.begun, self.seen = f"{below}/", at, begun, 0
        self.counted = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if counted else -1

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in ("open", *_CHANGES) or not isinstance(arguments[0], str | os.PathLike):
            return
        writes = event == "open" and bool(arguments[2] & _WRITES)
        path = os.path.abspath(arguments[0])  # noqa: PTH100 (pathlib announces itself)
        if not path.startswith(self.below) or (event == "open" and not writes):
            return
        self.seen += 1
        if self.counted >= 0:
            os.write(self.counted, b"w" if writes else b"x")
        if self.seen == self.at:
            if writes and self.begun:
                os.close(os.open(path, arguments[2]))
            os.kill(os.getpid(), signal.SIGKILL)
