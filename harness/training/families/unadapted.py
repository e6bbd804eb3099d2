"""Linear layers of a base that take no adapter, and stay out where an adapter is put on all of them.

Source: PEFT refuses its low-rank families on `out_proj` of Mamba's kind, whose weights kernels read past the
adapter; routers of experts return more than their products, on which no adapter can lie.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftConfig

_ROUTERS = dict.fromkeys(("llama4", "llama4_text", "phimoe"), "router")
_FUSED = dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), "out_proj")
_LOW_RANK = ("LORA", "ADALORA", "RANDLORA")


def exclude_unadapted(config: "PeftConfig", model_type: str) -> None:
    """Leave out what takes no adapter, beside what a configuration does, where all linear layers have one."""
    fused = _FUSED if config.peft_type in _LOW_RANK else {}
    name, of = (_ROUTERS | fused).get(model_type), vars(config)
    if name is None or of.get("target_modules") != "all-linear" or "exclude_modules" not in of:
        return
    written: Any = of["exclude_modules"]
    if written and not isinstance(written, str):
        of["exclude_modules"] = {*written, name}
    else:
        of["exclude_modules"] = "|".join(filter(None, (rf".*\.{name}", written)))
