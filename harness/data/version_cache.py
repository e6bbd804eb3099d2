"""The version of a task's test items, remembered by all that it is made of.

Invariant: what is remembered is what reading the files again would give, because their content, the
task's definition, the seed and the version of the code that reads are its key.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

from harness.cache import cache_dir, remember
from harness.data import load_task, task_version
from harness.provenance.code_versions import versions_of
from harness.records import digest
from harness.spec import DATA_FILES, Task


def version_of_test(task: Task, seed: int) -> str:
    """Return the version of a task's test items as its files are now; data sets of the hub are read.

    Raises:
        UserError: a file cannot be read or used.
    """
    files = [Path(path) for part in DATA_FILES if (path := getattr(task.data, part))]
    if not all(file.is_file() for file in files):
        return task_version(task, load_task(task, seed), "test")
    content = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    key = digest([task.model_dump(mode="json", exclude_defaults=True), content, seed, versions_of("data")])
    memory = cache_dir() / "versions" / key
    if memory.exists():
        return memory.read_text("utf-8")
    version = task_version(task, load_task(task, seed), "test")
    with suppress(OSError):  # a folder that may only be read costs time, and no more
        remember(memory, version)
    return version
