"""Local copies of data sets, cut to their first documents, for unmodified tasks of lm-eval.

Invariant: only the evaluated splits are cut; few-shot examples are drawn from whole splits.
"""

import gzip

from conftest import find_shared_data


def cut_mirror(folder, tasks, n):
    """Mirror the data of some tasks: cut evaluated splits to their first n documents, link the others."""
    cut = {(data, config, split) for data, config, split in tasks.values()}
    for data in {data for data, _, _ in cut}:
        source = find_shared_data(f"hub/{data}")
        for path in (p for p in source.rglob("*") if p.is_file()):
            target = folder / data / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (data, path.parent.name, path.name.partition(".")[0]) in cut:
                # Copy the first n lines of a file, compressed or not.
                opened = gzip.open if path.suffix == ".gz" else open
                with opened(path, "rb") as rows, opened(target, "wb") as output:
                    output.writelines(row for row, _ in zip(rows, range(n), strict=False))
            else:
                target.symlink_to(path)
    return folder
