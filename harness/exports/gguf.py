"""GGUF for llama.cpp, Ollama and xllamacpp: one file with weights, tokenizer and chat template.

The types are those of llama.cpp: 8 and 16 bits by its converter, fewer bits by its quantiser, both in a
separate environment. Tensors with rows that a type does not divide get another type; the record counts them.
Source: llama.cpp's `convert_hf_to_gguf.py` and `llama_model_quantize`
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import CandidateFailed, Problem
from harness.exports import Bits, ExportJob, Format, Written, write_whole
from harness.models import programs
from harness.models.artefacts import GGUF_CONVERTER, GGUF_ENVIRONMENT, environment_of, find_converter
from harness.spec import ExportPolicy

_CONVERTED = ("q8_0", "f16", "bf16", "f32")
_BITS = {
    "f32": Bits(32, 32, 32),
    "f16": Bits(16, 16, 16),
    "bf16": Bits(16, 16, 16),
    "q8_0": Bits(8.5, 8.5, 8.5),
    "q6_k": Bits(6.6, 8.5, 8.5),
    "q5_k_m": Bits(5.7, 6.4, 8.5),
    "q4_k_m": Bits(4.9, 5.7, 8.5),
    "q4_0": Bits(4.6, 4.6, 8.5),
    "q3_k_m": Bits(3.9, 4.9, 8.5),
    "q2_k": Bits(3.0, 4.6, 8.5),
}
_TOOLS = f"make gguf-tools, which makes {GGUF_ENVIRONMENT}; or name the program in export.gguf.command"
_QUANTIZER = """
import ctypes, sys, llama_cpp
source, made, name = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + name.upper())
sys.exit(llama_cpp.llama_model_quantize(source.encode(), made.encode(), ctypes.byref(params)))
"""
_VERSION = "import importlib.metadata as m; print(m.version('{}'))"
_PACKAGES = ("convert-hf-to-gguf", "llama-cpp-python")


def problems(policy: ExportPolicy, quantization: str) -> Iterator[Problem]:
    """Yield a problem if the converter or the quantiser in its environment is missing."""
    where, command = "export.gguf.command", policy.gguf.command
    if (program := find_converter(command)) is None:
        found = f"no program {command or GGUF_CONVERTER}"
        yield Problem(where, found, "llama.cpp's converter", _TOOLS)
    elif quantization not in _CONVERTED and not _version(program, "llama-cpp-python"):
        found = f"no llama-cpp-python in the environment of {program}, which {quantization} needs"
        step = "CMAKE_ARGS=-DGGML_NATIVE=OFF make gguf-tools; or --quantize q8_0"
        yield Problem(where, found, "llama.cpp's quantiser", step)


def write(job: ExportJob, folder: Path) -> Written:
    """Write the merged model in fp32, convert it, and quantise it further if the type needs that."""
    plan = job.plan
    program = find_converter(plan.policy.gguf.command)
    assert program is not None, "a program that is not there is refused"
    name, type_name = f"{plan.run.run_id}-{plan.quantization}.gguf", plan.quantization
    work = folder / ".work"
    gap = write_whole(job, work / "merged", "fp32").gap
    first = type_name if type_name in _CONVERTED else "f32"
    converted = work / f"{first}.gguf"
    options = ("--outfile", str(converted), "--outtype", first, "--model-name", plan.run.run_id)
    _run(job, [program, str(work / "merged"), *options], work, "the converter")
    if first != type_name:
        words = [_python(program), "-I", "-c", _QUANTIZER, str(converted), str(folder / name), type_name]
        _run(job, words, work, "the quantiser")
    else:
        converted.rename(folder / name)
    for file_name in ("chat_template.jinja", "generation_config.json"):
        if (work / "merged" / file_name).exists():
            (work / "merged" / file_name).rename(folder / file_name)
    shutil.rmtree(work)
    from gguf import GGUFReader

    reader: Any = GGUFReader(folder / name)
    field, template = reader.get_field("tokenizer.chat_template"), folder / "chat_template.jinja"
    if template.exists() and (field is None or field.contents() != template.read_text("utf-8")):
        found = "a GGUF file with another chat template than the run's, or none"
        raise CandidateFailed(found, "another version of the converter, or --to merged")
    types = dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common())
    versions = {package: version for package in _PACKAGES if (version := _version(program, package))}
    return Written(types, versions, gap)


def _run(job: ExportJob, command: Sequence[str], work: Path, program: str) -> None:
    log = work / "log"
    ended = programs.run(command, work, log, None, job.advance, environment_of(python=""))
    if ended.code:
        last_words = programs.last_words(log)
        how = f"by signal {-ended.code}" if ended.code < 0 else f"with exit code {ended.code}"
        step = "another version of the converter, or --to merged"
        if ended.code < 0:
            step = "building llama-cpp-python with CMAKE_ARGS=-DGGML_NATIVE=OFF, or --quantize q8_0"
        raise CandidateFailed(f"{program} ended {how}; {last_words}", step)


def _python(program: str) -> str:
    return str(Path(program).with_name("python"))


def _version(program: str, package: str) -> str:
    command = [_python(program), "-I", "-c", _VERSION.format(package)]
    return next(iter(programs.read_lines(command, Path("/"))), "")


FORMAT = Format(bits=_BITS, write=write, seconds=(15.0, 90.0), default="q8_0", problems=problems)
