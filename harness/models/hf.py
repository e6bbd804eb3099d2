"""Things that generate and score text: a language model, a classifier, a scripted fake.

Invariant: token ids go in, and nothing but `encode_all` makes them of a text.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from harness.errors import CandidateFailed, one_line
from harness.models import oom
from harness.models.adapters import CONFIG, WEIGHTS, changes_modules, moves_base
from harness.models.adapters.merged_layers import merge_layers
from harness.models.adapters.sparse_updates import compute_in_normal_mode
from harness.models.batching import CPU_COSTS, Pair, PassCosts, Size, plan
from harness.models.cpu_kernels import prepack
from harness.models.devices import placement
from harness.models.devices.cuda_attention import avoid_cudnn_attention
from harness.models.devices.loaders import LOADERS
from harness.models.devices.pass_costs import costs_of
from harness.models.devices.two_layer_copy import find_copied_engine
from harness.models.generation import (
    Continuation,
    PromptReader,
    Stopped,
    answers,
    pick_at_random,
    pick_likeliest,
)
from harness.models.hardware import Machine
from harness.models.hub import ModelSource, is_encoder_decoder, load_tokenizer
from harness.models.loglikelihood import UNSUPPORTED, Executor, layout_digest
from harness.models.soft_prompts import soft_prompt
from harness.models.token_scores import TokenScores, score_tokens
from harness.models.tokenization import PromptEncoder, answer, encode_all, end_ids
from harness.progress import quiet_libraries
from harness.prompting._words import WORD, split_into_grams
from harness.records import Encoded, Likelihood, Limits, Message, Output, PromptText, digest, parse_json

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

_OF_A_DEVICE = re.compile("CUDA|NVIDIA")  # no GPU, or one that failed: no fault of the base
_NOT_MERGED = (
    "serve_merged, and an adapter that is more than low-rank updates of unquantised linear layers, "
    "or no memory for copies of these"
)
READING = {"cpu": Size(512, 1024), "cuda": Size(512, 16_384)}
# What is generated together; its keys and values lie in memory.
ANSWERING = {"cpu": Size(512, 32_768), "cuda": Size(512, 262_144)}


class Candidate(Protocol):
    """Protocol of a model that is evaluated."""

    weights_digest: str
    engine: str
    layout_digest: str
    max_context: int

    def encode(
        self, messages: Sequence[Message], continuation: str = "", *, chat_template: bool = True
    ) -> Encoded:
        """Turn messages, and what would follow them, into token ids."""

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Turn messages, and what would follow each, into token ids, in order."""

    def generate(
        self, prompts: Sequence[tuple[int, ...]], limits: Limits, seeds: Sequence[int] = ()
    ) -> list[Output]:
        """Answer each prompt, in order: greedily, or at the limits' temperature by the prompt's seed."""

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation), in order; several may begin alike."""


def describe_engine(engine: str, device: str, costs: PassCosts = CPU_COSTS) -> tuple[str, str]:
    """Return the name and the layout digest of what answers with a scoring engine on a device."""
    layout = layout_digest(engine, READING[device].tokens, costs)
    return f"transformers/{engine}", digest([layout, READING[device], ANSWERING[device]])


class HFCandidate(PromptEncoder):
    """A causal language model of transformers, with or without an adapter."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        weights_digest: str,
        scoring_engine: str | None = None,
        costs: PassCosts = CPU_COSTS,
        soft_prompt: "Cache | None" = None,
    ) -> None:
        self.model, self.tokenizer, self.weights_digest = model, tokenizer, weights_digest
        device = model.device.type
        self._reading, self._answering = READING[device], ANSWERING[device]
        self._executor = Executor(model, self._reading.tokens, scoring_engine, soft_prompt, costs)
        self.engine, self.layout_digest = describe_engine(self._executor.engine, device, costs)
        longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
        self.max_context = longest - len(self._executor.prefixes.virtual_ids)

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Turn messages, and what would follow each, into token ids, in order (see `tokenization`)."""
        return encode_all(self.tokenizer, prompts)

    def generate(
        self, prompts: Sequence[tuple[int, ...]], limits: Limits, seeds: Sequence[int] = ()
    ) -> list[Output]:
        """Answer each prompt in batches of similar length, greedily or by draws of its seed."""
        virtual = self._executor.prefixes.virtual_ids
        prompts = [virtual + prompt for prompt in prompts] if virtual else prompts
        out: dict[int, Output] = {}
        lengths = [len(p) + limits.max_new_tokens for p in prompts]
        costs = self._executor.costs
        for batch in plan(lengths, self._answering, costs.answering, costs.keys):
            drawn = [seeds[i] for i in batch] if seeds else ()
            out.update(zip(batch, self._answer([prompts[i] for i in batch], limits, drawn), strict=True))
        return [out[i] for i in range(len(prompts))]

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation) in nats; what pairs begin with in common is read once."""
        return self._executor.loglikelihoods(pairs)

    def refuse_no_numbers(self) -> None:
        """Refuse a model whose logits are no numbers (see `Executor`)."""
        self._executor.refuse_no_numbers()

    def score_tokens(self, texts: Sequence[str]) -> list[TokenScores]:
        """Score the tokens of each text, of as many as the context holds.

        Raises:
            CandidateFailed: there is no room for a text.
        """
        room = self.max_context - 1
        read = (self.encode((), text, chat_template=False) for text in texts)
        pairs = [(of.context, of.continuation[:room]) for of in read]
        return score_tokens(self.model, pairs, self._executor.costs.reading)

    def _answer(
        self, prompts: Sequence[tuple[int, ...]], limits: Limits, seeds: Sequence[int]
    ) -> list[Output]:
        """Generate for one batch; out of memory, for its halves."""
        import torch

        try:
            return self._answer_together(prompts, limits, seeds)
        except oom.ERRORS as error:
            if not oom.ran_out(error):
                raise
            if not self._executor.prefixes.forget() and len(prompts) == 1:
                raise CandidateFailed(
                    "out of memory while generating one answer", "a smaller base_model or shorter prompts"
                ) from None
        # Outside of the clause, in which the error still holds the keys of the whole batch.
        torch.cuda.empty_cache()
        half = len(prompts) // 2
        parts = ((prompts[:half], seeds[:half]), (prompts[half:], seeds[half:]))
        return [output for part, drawn in parts if part for output in self._answer(part, limits, drawn)]

    def _answer_together(
        self, prompts: Sequence[tuple[int, ...]], limits: Limits, seeds: Sequence[int]
    ) -> list[Output]:
        start = time.perf_counter()
        ends = end_ids(self.tokenizer, self.model.generation_config)
        pick = pick_at_random(limits, seeds) if limits.temperature else pick_likeliest
        how = Continuation(limits.max_new_tokens, ends, self._stop_condition(limits.stop), pick)
        by = self._executor
        reader = PromptReader(self.model, self._reading, by.prefixes, by.engine, by.costs)
        made = answers(reader, prompts, how)
        share = (time.perf_counter() - start) / len(prompts)
        pairs = zip(prompts, made, strict=True)
        return [answer(self.tokenizer, prompt, new, ends, limits, share) for prompt, new in pairs]

    def _stop_condition(self, stop: tuple[str, ...]) -> Stopped:
        """Stop a row once a stop string stands in its answer (looked for in the newest tokens)."""
        import torch

        newest = 1 + max((len(s.encode()) for s in stop), default=0)  # a token holds a byte at least

        def has_stopped(new: "torch.Tensor") -> "torch.Tensor":
            tails = self.tokenizer.batch_decode(new[:, -newest:], skip_special_tokens=True) if stop else ()
            found = [any(s in tail for s in stop) for tail in tails] or [False] * len(new)
            return torch.tensor(found, device=new.device)

        return has_stopped


class ModelHost:
    """One base in memory; adapters are put on it and taken off again.

    Where the `scoring_engine` is not known, a two-layer copy tells it, or else the base.
    """

    def __init__(
        self,
        source: ModelSource,
        machine: Machine,
        scoring_engine: str | None = None,
        room: placement.Room | None = None,
    ) -> None:
        self.source, self.machine = source, machine
        placed = placement.place(source, machine, room or placement.free_room(machine))
        self.model, self.tokenizer = load_base(source, machine, placed=placed)
        self.model.eval()
        prepack(self.model)
        self.costs = costs_of(self.model, source, machine)
        known = scoring_engine or find_copied_engine(source.path, machine.device)
        self.base = HFCandidate(self.model, self.tokenizer, source.weights_digest, known, self.costs)
        self.base.refuse_no_numbers()

    @contextmanager
    def use_adapter(
        self, folder: Path, weights_digest: str, *, merged: bool = False
    ) -> Iterator[HFCandidate]:
        """Yield the base with the adapter of a folder; the base is itself again afterwards.

        In fp32 it is merged, where it can be; in less precision, where merged weights lose small updates,
        only if that is asked for.

        Raises:
            CandidateFailed: layers of the base lie in main memory beside a GPU or on the disk, the adapter
                holds weights that are no numbers, or it was to be merged and cannot be.
        """
        from peft import PeftModel

        placement.refuse_offloaded(self.model)
        _refuse_infinite(folder)
        config = parse_json((folder / CONFIG).read_text("utf-8"))
        with keep_base(self.model, config):
            # Products are computed in the base's precision, merged weights rounded to it once.
            model: Any = PeftModel.from_pretrained(
                self.model, str(folder), autocast_adapter_dtype=merged, torch_device=self.machine.device
            )
            model.eval()
            compute_in_normal_mode(model)
            engine = self.base.engine.partition("/")[2]
            if model.active_peft_config.is_prompt_learning and not merged:
                soft = soft_prompt(model, engine)
                yield HFCandidate(self.model, self.tokenizer, weights_digest, engine, self.costs, soft)
                return
            if changes_modules(config):
                prepack(model)
            candidate = HFCandidate(model, self.tokenizer, weights_digest, engine, self.costs)
            try:
                merges = merged or self.machine.precision == "fp32"
                with merge_layers(model) if merges else nullcontext(False) as is_merged:
                    if merged and not is_merged:
                        raise CandidateFailed(_NOT_MERGED, "leaving out serve_merged")
                    yield candidate
            finally:
                getattr(model.base_model, "unload", lambda: None)()


def _refuse_infinite(folder: Path) -> None:
    """Refuse an adapter that holds NaN or inf, as one of a training that diverged does."""
    from safetensors.torch import load_file

    for name, tensor in load_file(folder / WEIGHTS).items() if (folder / WEIGHTS).exists() else ():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            found = f"an adapter whose weights are no numbers ({name})"
            raise CandidateFailed(found, "training it again, with a lower learning rate")


@contextmanager
def keep_base(model: Any, config: Mapping[str, Any]) -> Iterator[None]:
    """Give a base back the modules, weights and layers that an adapter of this configuration puts others for.

    PEFT leaves trained copies of modules, biases, changed weights and repeated layers in the base.
    """
    modules = {m: (dict(m._modules), vars(m).get("forward")) for m in model.modules()}  # noqa: SLF001
    written = [p for n, p in model.named_parameters() if n.endswith("bias") or moves_base(config)]
    values, n_layers = {p: p.data for p in written}, model.config.get_text_config().num_hidden_layers
    for parameter in written:
        parameter.data = parameter.data.clone()
    for module in modules if changes_modules(config) else ():
        vars(module).pop("forward", None)  # of `prepack`, which holds the weights as they are now
    try:
        yield
    finally:
        for module, (children, forward) in modules.items():
            module._modules.clear()  # noqa: SLF001
            module._modules.update(children)  # noqa: SLF001
            if forward is not None:
                setattr(module, "forward", forward)  # noqa: B010
        for parameter, value in values.items():
            parameter.data = value
        model.config.get_text_config().num_hidden_layers = n_layers


@contextmanager
def merge_adapter(candidate: Candidate) -> Iterator[None]:
    """Serve a candidate with its adapter merged (see `merged_layers`); what has none is left as it is."""
    with merge_layers(candidate.model) if isinstance(candidate, HFCandidate) else nullcontext():
        yield


def load_base(
    source: ModelSource, machine: Machine, attention: str = "sdpa", placed: placement.Placement | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load model and tokenizer in the machine's precision, quantised where the source is.

    They lie on the machine's device, or as they are `placed`.

    `attention` is transformers' `attn_implementation`; one that the architecture does not have gives way to
    its own. Scoring needs one that honours masks.

    Raises:
        CandidateFailed: the model does not fit the device's memory, transformers cannot load it, its files
            lack tensors, or its tokenizer has tokens that it has no embeddings for.
    """
    quiet_libraries()
    avoid_cudnn_attention()
    found = f"{source.name} does not fit the memory of {machine.name}"
    with oom.explain_out_of_memory(found, "a smaller base_model or device: cpu"), _refuse_unloadable(source):
        if is_encoder_decoder(source):
            raise CandidateFailed(f"{source.name} is an encoder with a decoder", "a causal language model")
        known = choose_supported_attention(source.path, attention)
        placed = placed or placement.Placement({"": machine.device} if machine.device != "cpu" else None)
        model = LOADERS[source.quantization](source, machine, known, placed)
        placement.refuse_headless(model, source.name)
        tokenizer = load_tokenizer(source)
        embeddings: Any = model.get_input_embeddings()
        _refuse_unknown_ids(tokenizer, len(embeddings.weight), source.name)
        return model, tokenizer


def _refuse_unknown_ids(tokenizer: "PreTrainedTokenizerBase", n_ids: int, name: str) -> None:
    """Refuse a tokenizer with tokens beyond the embeddings; added ones that stand in no chat may stay."""
    if len(tokenizer) <= n_ids:
        return
    added, chat = tokenizer.get_added_vocab(), f"{tokenizer.chat_template}"
    in_use = (tokenizer.bos_token, tokenizer.eos_token)
    beyond = {token for token, i in tokenizer.get_vocab().items() if i >= n_ids}
    if read := sorted(one for one in beyond if one not in added or one in in_use or one in chat):
        found = f"{name}: {len(read)} of its tokens have no embeddings, such as {read[0]!r}"
        raise CandidateFailed(found, "its own tokenizer, or model.resize_token_embeddings before saving it")


@contextmanager
def _refuse_unloadable(source: ModelSource) -> Iterator[None]:
    """Turn what transformers cannot load into a failure of the candidate that says why."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (*UNSUPPORTED, ImportError, StrictDataclassError) as error:
        if oom.ran_out(error) or _OF_A_DEVICE.search(str(error)):
            raise
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
        reason = f"{source.name} cannot be loaded ({one_line(cause or error)})"
        raise CandidateFailed(reason, "another base_model, or a newer transformers") from error


def choose_supported_attention(folder: Path, wanted: str) -> str | None:
    """Return the attention that is wanted where an architecture has it; None leaves it to transformers."""
    if wanted == "sdpa":  # what transformers takes unasked, where an architecture has it
        return None
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    has_flash = model._supports_flash_attn  # noqa: SLF001  (transformers asks so itself)
    return wanted if has_flash or "flash" not in wanted else None


class TextTable(NamedTuple):
    """Answer of a text classifier to one text: its labels and their log-probabilities in nats."""

    labels: tuple[str, ...]
    logprobs: tuple[float, ...]


class TextCandidate(PromptEncoder):
    """Anything that answers a text without a language model: its token ids are UTF-8 bytes.

    `predict` maps prompts to tables of labels; the best label is the answer. A label that a
    table does not hold has log-probability −1e9. Used by the classifier, and with a plain
    function as the real fake of the tests (`scripted`).
    """

    engine = "text"
    max_context = 1 << 30

    def __init__(self, predict: Callable[[Sequence[str]], list[TextTable]], weights_digest: str) -> None:
        self._predict, self.weights_digest = predict, weights_digest
        self.layout_digest = digest("text")

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Encode each last user message, and the continuation, as bytes."""
        users = [[m["content"] for m in one.messages if m["role"] == "user"] or [""] for one in prompts]
        return [
            Encoded(tuple(texts[-1].encode()), tuple(one.continuation.encode()))
            for texts, one in zip(users, prompts, strict=True)
        ]

    def generate(
        self, prompts: Sequence[tuple[int, ...]], limits: Limits, seeds: Sequence[int] = ()
    ) -> list[Output]:
        """Answer each prompt with its best label, which no seed changes."""
        start = time.perf_counter()
        tables = self._predict([bytes(p).decode() for p in prompts])
        share = (time.perf_counter() - start) / max(len(prompts), 1)
        return [
            Output(
                max(zip(t.logprobs, t.labels, strict=True))[1],
                n_prompt_tokens=len(p),
                n_output_tokens=1,
                compute_s=share,
            )
            for p, t in zip(prompts, tables, strict=True)
        ]

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Return the log-probability of each label, given its text."""
        tables = self._predict([bytes(context).decode() for context, _ in pairs])
        out = []
        for (_, continuation), table in zip(pairs, tables, strict=True):
            known = dict(zip(table.labels, table.logprobs, strict=True))
            # Without a chat template a choice follows its question after a space.
            logprob = known.get(bytes(continuation).decode().removeprefix(" "), -1e9)
            out.append(Likelihood(logprob, logprob == max(table.logprobs)))
        return out


def script_candidate(answer: Callable[[str], str], weights_digest: str = "scripted") -> TextCandidate:
    """Return a candidate that answers by a function of the prompt: a real fake for tests."""
    return TextCandidate(lambda texts: [TextTable((answer(t),), (0.0,)) for t in texts], weights_digest)


def classifier(folder: Path, weights_digest: str) -> TextCandidate:
    """Fit the classifier whose texts and labels lie in a folder, and return it as a candidate."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    content = json.loads((folder / "classifier.json").read_text())
    params = content["params"]
    cut, words = (split_into_grams, {"token_pattern": WORD}) if content.get("grams") else (str, {})
    model = make_pipeline(
        TfidfVectorizer(
            ngram_range=tuple(params["ngram_range"]), min_df=params["min_df"], sublinear_tf=True, **words
        ),
        LogisticRegression(C=params["C"], max_iter=1000),
    ).fit(list(map(cut, content["texts"])), content["labels"])
    labels = tuple(map(str, model.classes_))

    def predict(texts: Sequence[str]) -> list[TextTable]:
        return [
            TextTable(labels, tuple(map(float, row)))
            for row in model.predict_log_proba(list(map(cut, texts)))
        ]

    return TextCandidate(predict, weights_digest)
