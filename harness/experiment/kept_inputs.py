"""Inputs of an experiment, kept in its folder of runs so that this folder alone can be judged again.

    runs/inputs/<experiment>/harness.yaml    the experiment as compared, with paths relative to this folder
    runs/inputs/<experiment>/…               the files that it names, as next to it; other ones in outside/

Of a base in a folder, configuration and tokenizer are kept, without weights. Code of own metrics is not kept.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from harness.cache import fill_cache_file, make_private_folder
from harness.config import LoadedExperiment
from harness.models.hub import WITHOUT_WEIGHTS, ModelSource, small_files
from harness.records import digest
from harness.spec import metric_parts
from harness.store import Store

_OUTSIDE = "outside"


def keep_inputs(at: Store, loaded: LoadedExperiment, sources: Iterable[ModelSource]) -> None:
    """Keep the files of an experiment and its bases; those that are kept already are not copied again."""
    home = at.place("inputs", loaded.experiment.name)
    files, texts = dict[str, Path](), dict[str, str]()
    bases = {str(source.path): source for source in sources}

    def relocate(value: Any) -> Any:
        if isinstance(value, dict):
            return {relocate(key): relocate(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [relocate(inner) for inner in value]
        if not isinstance(value, str) or "/" not in value:
            return value
        prefix, name, rest = ("", value, "") if value.startswith("/") else metric_parts(value)
        path = Path(name)
        if not path.is_absolute() or not path.exists():
            return value
        place = path if not path.is_relative_to(loaded.folder) else path.relative_to(loaded.folder)
        if place.is_absolute():
            place = Path(_OUTSIDE, digest(str(path)), path.name)
        if path.is_file() and path.suffix != ".py":
            files[str(place)] = path
        if base := bases.get(name):
            files.update((str(place / file.name), file) for file in small_files(path))
            sizes = {"weights_digest": base.weights_digest, "n_parameters": base.n_parameters}
            texts[str(place / WITHOUT_WEIGHTS)] = json.dumps(sizes)
        return f"{prefix}{place}{rest}"

    experiment = relocate(loaded.experiment.model_dump(mode="json", exclude_defaults=True))
    make_private_folder(home.parent)
    written = json.dumps(experiment, indent=1, ensure_ascii=False)
    texts[Path(loaded.typed.config or "harness.yaml").name] = f"# As it was compared.\n{written}\n"
    for name, text in texts.items():
        if not (home / name).exists() or (home / name).read_text("utf-8") != text:
            _write(home / name, partial(_write_text, text))
    for name, path in files.items():
        if not (home / name).exists() or _version(home / name) != _version(path):
            _write(home / name, partial(shutil.copy2, path))
    for file in home.rglob("*"):
        if file.is_file() and str(file.relative_to(home)) not in {*texts, *files}:
            file.unlink()


def _version(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, "utf-8")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fill_cache_file(path, write)
