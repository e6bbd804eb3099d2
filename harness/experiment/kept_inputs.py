"""Inputs of an experiment, kept in its folder of runs so that this folder alone can be judged again.

    runs/inputs/<experiment>/…    its file and those that it names, laid out as in the experiment's folder

Of a base in that folder, configuration and tokenizer are kept, without weights. Settings with a secret are
kept as JSON without it. Files outside the folder, code, and files among a candidate's params are not kept.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.cache import fill_cache_file, make_private_folder
from harness.config import LoadedExperiment, load_yaml, plain
from harness.masking import mask_secrets, mask_values
from harness.models.hub import WITHOUT_WEIGHTS, ModelSource, small_files
from harness.store import Store


def keep_inputs(at: Store, loaded: LoadedExperiment, sources: Iterable[ModelSource]) -> None:
    """Copy the files of an experiment and its bases, but for those that are kept as they are now."""
    home = at.place("inputs", loaded.experiment.name)
    make_private_folder(home.parent)

    def keep(path: Path, write: Callable[[Path], object] | None = None) -> None:
        if not path.is_relative_to(loaded.folder):
            return
        kept = home / path.relative_to(loaded.folder)
        if write or not kept.exists() or _version(kept) != _version(path):
            kept.parent.mkdir(parents=True, exist_ok=True)
            fill_cache_file(kept, write or partial(shutil.copy2, path))

    for file in loaded.files:
        settings = plain(load_yaml(text := file.read_text("utf-8-sig"), "safe"))
        masked = mask_values(settings)
        is_whole = masked == settings and mask_secrets(text) == text
        keep(file, None if is_whole else partial(_write, json.dumps(masked, ensure_ascii=False)))
    for file in _list_files(loaded.experiment.model_dump(mode="json")):
        keep(file)
    for source in sources:
        sizes = {"weights_digest": source.weights_digest, "n_parameters": source.n_parameters}
        keep(source.path / WITHOUT_WEIGHTS, partial(_write, json.dumps(sizes)))
        for file in small_files(source.path):
            keep(file)


def _list_files(value: Any) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _list_files(key)
            yield from _list_files(inner) if key != "params" else ()
    elif isinstance(value, list):
        for inner in value:
            yield from _list_files(inner)
    elif isinstance(value, str) and (match := re.fullmatch(r"(?:\w+:)?(/.+?)(?::\w+|\(.*\))?", value)):
        path = Path(match[1])
        if path.suffix != ".py" and path.is_file():
            yield path


def _version(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def _write(text: str, path: Path) -> None:
    path.write_text(text, "utf-8")
