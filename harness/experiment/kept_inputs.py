"""Inputs of an experiment, kept in its folder of runs so that this folder alone can be judged again.

    runs/inputs/<experiment>/…           its file and those that it names, laid out as in its folder
    runs/inputs/<experiment>/outside/    rows that it names outside its folder
    runs/inputs/<experiment>/baselines/  the histories of champions, which each promotion updates

Of a base in that folder, configuration and tokenizer are kept, without weights. Settings with a secret, or
with rows outside, are kept as JSON with neither. Code, and files among a candidate's params are not kept.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.cache import fill_cache_file, make_private_folder
from harness.config import LoadedExperiment, load_yaml, plain
from harness.masking import mask_secrets, mask_values
from harness.models.hub import WITHOUT_WEIGHTS, ModelSource, small_files
from harness.records import digest
from harness.store import AGAIN, Store, clear_errors


def keep_inputs(at: Store, loaded: LoadedExperiment, sources: Iterable[ModelSource]) -> None:
    """Copy the files of an experiment and its bases, but for those that are kept as they are now."""
    home = at.place("inputs", loaded.experiment.name)
    files = set(_list_files(loaded.experiment.model_dump(mode="json")))
    names = {path.name for path in files}
    make_private_folder(home.parent)

    def keep(path: Path, place: Path | None = None, text: str | None = None) -> None:
        place = place or path
        if not place.is_relative_to(loaded.folder):
            return
        kept = home / place.relative_to(loaded.folder)
        if text is not None or not kept.exists() or _version(kept) != _version(path):
            write = partial(shutil.copy2, path) if text is None else partial(_write, text)
            with clear_errors(at, str(kept), AGAIN):
                kept.parent.mkdir(parents=True, exist_ok=True)
                fill_cache_file(kept, write)

    def bring_in(value: Any, folder: Path) -> Any:
        if isinstance(value, dict):
            return {bring_in(key, folder): bring_in(inner, folder) for key, inner in value.items()}
        if isinstance(value, list):
            return [bring_in(inner, folder) for inner in value]
        if not isinstance(value, str) or value.rpartition("/")[2] not in names:
            return value
        path = (folder / Path(value).expanduser()).resolve()
        if path not in files or path.is_relative_to(loaded.folder):
            return value
        place = loaded.folder / "outside" / digest(str(path)) / path.name
        keep(path, place)
        return os.path.relpath(place, folder)

    for file in (file for file in loaded.files if file.is_relative_to(loaded.folder)):
        settings = plain(load_yaml(text := file.read_text("utf-8-sig"), "safe"))
        kept_settings = mask_values(bring_in(settings, file.parent))
        is_whole = kept_settings == settings and mask_secrets(text) == text
        keep(file, text=None if is_whole else json.dumps(kept_settings, ensure_ascii=False))
    for file in (*files, *loaded.folder.glob("baselines/champions/*.history.jsonl")):
        keep(file)
    for source in sources:
        sizes = {"weights_digest": source.weights_digest, "n_parameters": source.n_parameters}
        keep(source.path / WITHOUT_WEIGHTS, text=json.dumps(sizes))
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
