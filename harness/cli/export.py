"""Command that exports a run's weights for other programs."""

from pathlib import Path
from typing import Annotated

from harness.cli.app import RELEASE, app, print_value, say
from harness.cli.options import Argument, ExperimentFile, Json, Option, verb
from harness.formatting import seconds, size

_SHOWN = ("format", "quantization", "run_id", "weights_digest", "types", "limits", "versions", "notes")


@verb(
    app,
    "harness export lora --to merged",
    "harness export lora --to gguf --quantize q4_k_m --dry-run",
    heading=RELEASE,
)
def export(
    run: Annotated[str, Argument("A run's id, a candidate (its best seed), or the target of a champion.")],
    at: ExperimentFile,
    to: Annotated[str, Option("merged, gguf, onnx or hub: `harness ls exports` says what they are.")],
    quantize: Annotated[str, Option("The type of the weights, such as bf16, q8_0 or q4_k_m.")] = "",
    out: Annotated[Path | None, Option("The new folder; by default below runs/exports.")] = None,
    dry_run: Annotated[bool, Option("Print size and time, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's weights in a format of other programs.

    The folder appears whole or not at all, with the chat template and the limits that prompted the run, and
    export.json: checksums, versions, and the types that the tensors really got. Nothing is uploaded.
    """
    from harness import exports, release

    session, loaded = at.open_session()
    found = release.find_run(release.load_study(loaded), run)
    plan = exports.plan_export(session, found, to, quantize, out)
    for note in plan.notes:
        say(f"note: {note}")
    if dry_run:
        said = {"folder": str(plan.folder), "format": plan.format, "quantization": plan.quantization}
        estimated = {"n_bytes": round(plan.n_bytes), "seconds": round(plan.seconds)}
        about = {"size": f"about {size(plan.n_bytes)}", "time": f"about {seconds(plan.seconds)}"}
        print_value(said | (estimated if as_json else about), as_json)
        return
    made = exports.export_run(session, plan)
    say(f"wrote {made.folder}" if made.is_new else f"{made.folder}: exported before, and whole")
    record = made.export
    shown = {name: getattr(record, name) for name in _SHOWN}
    files = {name: file.bytes if as_json else size(file.bytes) for name, file in record.files.items()}
    total = record.n_bytes if as_json else size(record.n_bytes)
    print_value({"folder": str(made.folder)} | shown | {"files": files, "size": total}, as_json)
