"""Ways to fine-tune, each at two strengths: methods, PEFT's families, regularisers, later repairs."""

from typing import Any

PLAIN = "plain"
_BATCH = {"num_train_epochs": 1, "per_device_train_batch_size": 4}
_FIRST = f"{PLAIN}-2"  # starting point of ways without a training
Recipe = dict[str, Any]
Strengths = tuple[Recipe, Recipe]


def make_trained(method: str, rates: tuple[float, float], **params: Any) -> Strengths:
    """Return a method at two learning rates."""
    low, high = ({"method": method, "params": {**_BATCH, **params, "learning_rate": rate}} for rate in rates)
    return low, high


def make_regularized(name: str, key: str, values: tuple[float, float], method: str = "lora") -> Strengths:
    """Return plain LoRA, or the training of all parameters, under a regulariser at two strengths."""
    rate = {"lora": 1e-3, "full": 1e-4}[method]
    params = {**_BATCH, "learning_rate": rate, **({"r": 16} if method == "lora" else {})}
    low, high = ({"method": method, "params": params, "regularize": {name: {key: value}}} for value in values)
    return low, high


def family(peft_type: str, rates: tuple[float, float], **params: Any) -> Strengths:
    """Return one of PEFT's families at two learning rates."""
    return make_trained("peft", rates, peft_type=peft_type, **params)


def make_mended(method: str, key: str, values: tuple[float, float]) -> Strengths:
    """Return a repair of plain LoRA's weights without training, at two strengths."""
    low, high = ({"method": method, "init_from": _FIRST, "params": {key: value}} for value in values)
    return low, high


_USUAL = (5e-4, 1e-3)
WAYS: dict[str, Strengths] = {
    PLAIN: make_trained("lora", _USUAL, r=16),
    "replay": make_regularized("replay", "share", (0.25, 1.0)),
    "kl": make_regularized("kl", "strength", (0.3, 3.0)),
    "ewc": make_regularized("ewc", "strength", (3.0, 30.0)),
    "l2-sp": make_regularized("l2_sp", "strength", (0.001, 0.01)),
    "sam": make_regularized("sam", "rho", (0.02, 0.05)),
    "label-smoothing": make_regularized("label_smoothing", "factor", (0.05, 0.1)),
    "neftune": make_regularized("neftune", "noise_alpha", (5.0, 15.0)),
    "dora": make_trained("lora", _USUAL, r=16, use_dora=True),
    # PEFT's default alpha of 8 would make rsLoRA plain LoRA at this rank; PiSSA's paper uses alpha = r.
    "rslora": family("LORA", _USUAL, r=16, lora_alpha=32, use_rslora=True),
    "pissa": family("LORA", _USUAL, r=16, lora_alpha=16, init_lora_weights="pissa"),
    "eva": family("LORA", _USUAL, r=16, lora_alpha=32, init_lora_weights="eva"),
    "ia3": family("IA3", (3e-3, 1e-2)),
    "adalora": family("ADALORA", (1e-3, 3e-3), init_r=12, target_r=8),
    "vera": family("VERA", (3e-3, 1e-2)),
    "oft": family("OFT", (3e-4, 1e-3)),
    "loha": family("LOHA", (1e-3, 3e-3)),
    "ln-tuning": family("LN_TUNING", (1e-3, 3e-3)),
    "prefix-tuning": family("PREFIX_TUNING", (1e-2, 3e-2), num_virtual_tokens=20),
    "prompt-tuning": family("PROMPT_TUNING", (3e-2, 1e-1), num_virtual_tokens=20),
    "p-tuning": family("P_TUNING", (1e-3, 3e-3), num_virtual_tokens=20),
    "osf": family("OSF", (1e-4, 3e-4)),
    "bottleneck": make_trained("bottleneck", _USUAL, bottleneck_size=32),
    "spectrum": make_trained("spectrum", (1e-4, 3e-4), share=0.25),
    "full": make_trained("full", (3e-5, 1e-4)),
    "half": make_regularized("half", "rounds", (1, 4), "full"),
    "freeze": make_regularized("freeze", "first", (10, 20), "full"),
    "dropout": make_regularized("dropout", "rate", (0.05, 0.1), "full"),
    "scaled": make_mended("scaled", "scale", (0.5, 0.75)),
}


def candidates(ways: dict[str, Strengths]) -> dict[str, Recipe]:
    """Return the prompt, then each way's two strengths under names that end in 1 and 2."""
    recipes = {
        f"{way}-{n}": recipe for way, strengths in ways.items() for n, recipe in enumerate(strengths, 1)
    }
    return {"prompt": {"method": "base"}, **recipes}


def way_of(candidate: str) -> str:
    """Return the way of a candidate."""
    return candidate.rpartition("-")[0]
