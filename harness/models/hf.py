"""Language models of transformers in memory: a base with adapters and soft prompts.

Invariant: after an adapter is removed the base is bit-identical to before. The base's layers are never
written to; merged copies replace them temporarily.
Source: Lester et al. 2021 (arXiv:2104.08691), Liu et al. 2021 (arXiv:2103.10385), Li and Liang 2021
(arXiv:2101.00190)
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from harness.errors import CandidateFailed, one_line
from harness.models import devices, weight_files
from harness.models.against_base import adapter_problems, open_adapter, read_adapter_config
from harness.models.batching import CPU_COSTS, Pair, PassCosts, Size, Tokens, plan
from harness.models.candidate import Candidate
from harness.models.cpu_kernels import prepack, replace_weight
from harness.models.devices import load_base
from harness.models.generation import Continuation, PromptReader, answers, pick_at_random, pick_likeliest
from harness.models.hardware import Machine, memory
from harness.models.hub import ModelSource
from harness.models.later import Cache, Model, Tokenizer, torch
from harness.models.loglikelihood import Executor, find_copied_engine, layout_digest
from harness.models.out_of_memory import compute_in_halves, ran_out_of_memory
from harness.models.pass_costs import costs_of
from harness.models.prefix_cache import empty_cache, windows
from harness.models.tokenization import answer, end_ids
from harness.records import Likelihood, Limits, Output, digest

_NOT_MERGED = (
    "serve_merged, and an adapter that is more than low-rank updates of unquantised linear layers, "
    "or no memory for copies of these"
)
READING = {"cpu": Size(512, 1024), "cuda": Size(512, 16_384)}
# Limits of a generation batch, whose keys and values are in memory.
ANSWERING = {"cpu": Size(512, 32_768), "cuda": Size(512, 262_144)}


def describe_engine(engine: str, device: str, costs: PassCosts = CPU_COSTS) -> tuple[str, str]:
    """Return the name and the layout digest of a scoring engine on a device."""
    layout = layout_digest(engine, READING[device].tokens, costs)
    return f"transformers/{engine}", digest([layout, READING[device], ANSWERING[device]])


class HFCandidate(Candidate):
    """Causal language model of transformers, with or without an adapter."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        weights_digest: str,
        scoring_engine: str | None = None,
        costs: PassCosts = CPU_COSTS,
        soft_prompt: Cache | None = None,
    ) -> None:
        self.model, self.tokenizer, self.weights_digest = model, tokenizer, weights_digest
        device = model.device.type
        self._reading, self._answering = READING[device], ANSWERING[device]
        self._executor = Executor(model, self._reading.tokens, scoring_engine, soft_prompt, costs)
        self.engine, self.layout_digest = describe_engine(self._executor.engine, device, costs)
        longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
        self.max_context = longest - len(self._executor.prefixes.virtual_ids)

    def generate(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int] = ()) -> list[Output]:
        """Answer prompts in batches of similar length, greedily or by draws from each prompt's seed."""
        virtual = self._executor.prefixes.virtual_ids
        prompts = [virtual + prompt for prompt in prompts] if virtual else prompts
        outputs: dict[int, Output] = {}
        lengths = [len(p) + limits.max_new_tokens for p in prompts]
        costs = self._executor.costs

        def answer_batch(batch: list[int]) -> dict[int, Output]:
            batch_seeds = [seeds[i] for i in batch] if seeds else ()
            answered = self._answer_batch([prompts[i] for i in batch], limits, batch_seeds)
            return dict(zip(batch, answered, strict=True))

        for batch in plan(lengths, self._answering, costs.answering, costs.keys):
            outputs |= compute_in_halves(batch, answer_batch, self._executor.prefixes.forget, "generating")
        return [outputs[i] for i in range(len(prompts))]

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation) in nats; shared prefixes are read once."""
        return [Likelihood(sum(logprobs), greedy) for logprobs, greedy in self._executor.score(pairs)]

    def refuse_no_numbers(self) -> None:
        """Refuse a model whose logits are NaN or infinite (see `Executor`)."""
        self._executor.refuse_no_numbers()

    def _answer_batch(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int]) -> list[Output]:
        start = time.perf_counter()
        ends = end_ids(self.tokenizer, self.model.generation_config)
        pick = pick_at_random(limits, seeds) if limits.temperature else pick_likeliest
        stop = limits.stop
        # A stop string is searched in the newest tokens; each token has at least one byte.
        newest = 1 + max((len(s.encode()) for s in stop), default=0)

        def has_stopped(new: torch.Tensor) -> torch.Tensor:
            tails = self.tokenizer.batch_decode(new[:, -newest:], skip_special_tokens=True) if stop else ()
            stops = [any(s in tail for s in stop) for tail in tails] or [False] * len(new)
            return torch.tensor(stops, device=new.device)

        how = Continuation(limits.max_new_tokens, ends, has_stopped, pick)
        by = self._executor
        reader = PromptReader(self.model, self._reading, by.prefixes, by.engine, by.costs)
        new_ids = answers(reader, prompts, how)
        share = (time.perf_counter() - start) / len(prompts)
        pairs = zip(prompts, new_ids, strict=True)
        return [answer(self.tokenizer, prompt, new, ends, limits, share) for prompt, new in pairs]


class ModelHost:
    """Host of one base in memory, on which adapters are applied and removed."""

    def __init__(
        self,
        source: ModelSource,
        machine: Machine,
        scoring_engine: str | None = None,
        room: devices.Room | None = None,
    ) -> None:
        self.source, self.machine = source, machine
        placement = devices.place(source, machine, room or devices.free_room(machine))
        self.model, self.tokenizer = load_base(source, machine, placed=placement)
        self.model.eval()
        prepack(self.model)
        self.costs = costs_of(self.model, source, machine)
        engine = scoring_engine or find_copied_engine(source.path, machine.device)
        self.base = HFCandidate(self.model, self.tokenizer, source.weights_digest, engine, self.costs)
        self.base.refuse_no_numbers()

    @contextmanager
    def use_adapter(
        self, folder: Path, weights_digest: str, *, merged: bool = False
    ) -> Iterator[HFCandidate]:
        """Yield the base with the adapter in a folder; the adapter is removed afterwards.

        In fp32 the adapter is merged if possible, in lower precision only on request. CandidateFailed is
        raised if the base is offloaded to main memory or disk, or the adapter cannot be opened or merged.
        """
        from peft.tuners.shira.layer import ShiraLayer

        base: Any = self.model
        if devices.is_spread(base) and {"cpu", "disk"} & {*base.hf_device_map.values()}:
            found = "an adapter on a base that is partly in main memory or on the disk"
            raise CandidateFailed(found, "quantization: nf4, or more memory")
        with ExitStack() as stack:
            try:
                weight_files.refuse_infinite(folder)
                stack.enter_context(keep_base(self.model, folder))
                for problem in adapter_problems(folder, self.source, ""):
                    raise CandidateFailed(f"{problem.found}; expected {problem.expected}", problem.next_step)
                # Products are in the base's precision; merged weights are rounded to it once.
                device = self.machine.device
                model = open_adapter(self.model, folder, autocast_adapter_dtype=merged, torch_device=device)
                model.eval()
                # SHiRA layers leave inference mode, in which their threads may not write.
                for layer in model.modules():
                    if isinstance(layer, ShiraLayer):
                        forward = torch.inference_mode(mode=False)(torch.no_grad()(layer.forward))  # type: ignore[attr-defined]
                        setattr(layer, "forward", forward)  # noqa: B010  (mypy refuses to assign a method)
                engine, soft, served = self.base.engine.partition("/")[2], None, model
                if model.active_peft_config.is_prompt_learning and not merged:
                    soft, served = soft_prompt(model, engine), self.model
                else:
                    if weight_files.changes_modules(read_adapter_config(folder)):
                        prepack(model)
                    merges = merged or self.machine.precision == "fp32"
                    is_merged = stack.enter_context(merge_layers(model)) if merges else False
                    if merged and not is_merged:
                        raise CandidateFailed(_NOT_MERGED, "leaving out serve_merged")
                candidate = HFCandidate(served, self.tokenizer, weights_digest, engine, self.costs, soft)
                candidate.refuse_no_numbers()
            except CandidateFailed:
                raise
            except Exception as error:
                if ran_out_of_memory(error):
                    found = "out of memory while an adapter was opened"
                    raise CandidateFailed(found, "a smaller base_model") from None
                found = f"the adapter in {folder} cannot be put on the base ({one_line(error)})"
                raise CandidateFailed(found, "exporting it again, for this base") from error
            yield candidate


@contextmanager
def keep_base(model: Any, folder: Path) -> Iterator[None]:
    """Restore on exit the modules, attributes and weights that an adapter changes on a base."""
    config = read_adapter_config(folder)
    names = set(map(weight_files.own_name, weight_files.tensors_of(folder / weight_files.WEIGHTS)))
    attributes = {
        module: {name: (v, v.copy() if isinstance(v, dict) else None) for name, v in vars(module).items()}
        for module in model.modules()
    }
    params = model.named_parameters(remove_duplicate=False)
    written = [p for n, p in params if n.endswith("bias") or n in names or weight_files.moves_base(config)]
    values, n_layers = {p: p.data for p in written}, model.config.get_text_config().num_hidden_layers
    for parameter in values:
        parameter.data = parameter.data.clone()
    for module in attributes if weight_files.changes_modules(config) else ():
        vars(module).pop("forward", None)  # set by `prepack` for the current weights
    try:
        yield
    finally:
        for module, before in attributes.items():
            vars(module).clear()
            for name, (attribute, content) in before.items():
                if content is not None:
                    attribute.clear()
                    attribute.update(content)
                vars(module)[name] = attribute
        for parameter, value in values.items():
            parameter.data = value
        model.config.get_text_config().num_hidden_layers = n_layers


@contextmanager
def merge_adapter(candidate: Candidate) -> Iterator[None]:
    """Merge a candidate's adapter within the context (see `merge_layers`), if it has one."""
    with merge_layers(candidate.model) if isinstance(candidate, HFCandidate) else nullcontext():
        yield


@contextmanager
def merge_layers(model: Any) -> Iterator[bool]:
    """Replace an adapter's layers by merged copies within the context, if possible; yield whether it did."""
    places: list[tuple[Any, str, Any]] = []
    if hasattr(model, "peft_config") and not devices.is_spread(model.get_base_model()):
        from peft.tuners import lora

        children = ((parent, *child) for parent in model.modules() for child in parent.named_children())
        places = [place for place in children if isinstance(place[2], lora.LoraLayer)]
        plain = all(
            type(layer) is lora.Linear
            and type(layer.base_layer) is torch.nn.Linear
            and not (layer.lora_variant or any(layer.lora_bias.values()))
            for _, _, layer in places
        )
        n_bytes = sum(2 * layer.base_layer.weight.nbytes for _, _, layer in places) if plain else 0
        if not plain or n_bytes / 2**30 >= memory(model.device.type).free_gib:
            places = []
    try:
        for parent, name, layer in places:
            base = layer.base_layer
            with torch.no_grad():  # the sum of weight and updates is rounded once
                weight = base.weight + sum(map(layer.get_delta_weight, layer.active_adapters))
            setattr(parent, name, replace_weight(base, weight))
        yield bool(places)
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)


def soft_prompt(model: Any, engine: str) -> Cache:
    """Return the keys and values of a PEFT model's soft prompt, one row."""
    base = model.get_base_model()
    if engine != "packed" or any(windows(base.config) or ()):
        reason = "a soft prompt needs a base whose layers all attend to everything that was read"
        raise CandidateFailed(reason, "another peft_type, as LORA")
    with torch.inference_mode():
        prompt = model.get_prompt(batch_size=1)
        if model.active_peft_config.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
            return cast(Cache, prompt)
        cache = empty_cache(base)
        embeddings = prompt.to(base.get_input_embeddings().weight.dtype)
        base(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache
