"""A language model of some 30,000 parameters, made on the spot: whole experiments run in seconds on it.

Invariant: the same seed gives the same files; fp32, so that packing and batching can be held to 1e-4.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STARTED = "{{ bos_token }}" + CHATML

_LINES = (
    "The desk answers every letter with one word.",
    "My parcel is late, and nobody at the depot picks up the telephone.",
    "Where is the parcel that I paid for on Monday?",
    "The invoice shows the wrong sum; please send the money back.",
    "I was charged two times for one lamp.",
    "How do I change the address of my account?",
    "A red fox and a brown hen walk past a green gate at noon.",
    "system user assistant",
    "Context: question and answer, yes or no, one two three four five six seven eight nine ten.",
)

QUESTIONS = (
    "Where is my parcel?",
    "I was charged two times for one lamp, and nobody at the depot picks up the telephone.",
    "Yes?",
    "How do I change the address of my account?",
)
ASKED = [{"role": "user", "content": "Where is my parcel?"}]
CHOICES = ("late", "the money back", "a red fox and a brown hen")


def build(
    folder: Path,
    *,
    seed: int = 0,
    template: str | None = CHATML,
    adds_bos: bool = False,
    hidden_size: int = 32,
    head_dim: int = 8,
) -> Path:
    """Save model and tokenizer; `adds_bos` makes the tokenizer itself write `<s>` before a text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    known = tokenizer(template, adds_bos)
    config = LlamaConfig(
        vocab_size=len(known),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=256,
        initializer_range=0.3,  # at the usual 0.02 every token is about as likely as any other
        tie_word_embeddings=True,
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id,
        pad_token_id=known.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    known.save_pretrained(folder)
    return folder


def build_bert(folder: Path, words: list[str], kind: str = "BertModel", *, seed: int = 0, **settings) -> Path:
    """Save a random BERT of some kind, and a tokenizer that knows these words."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    known = transformers.BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=len(known), max_position_embeddings=64, **sizes, **settings)
    getattr(transformers, kind)(config).save_pretrained(folder)
    known.save_pretrained(folder)
    return folder


def tokenizer(template: str | None = CHATML, adds_bos: bool = False):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<pad>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_LINES, trainer)
    if adds_bos:
        bos = [("<s>", made.token_to_id("<s>"))]
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="<|im_end|>", pad_token="<pad>",
        chat_template=template, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def copy(model: Path, folder: Path, **config) -> Path:
    shutil.copytree(model, folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    return folder


def train_adapter(model: Path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(loaded, config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.05)
    asked = AutoTokenizer.from_pretrained(model)("Where is the parcel that I paid for on Monday?")
    ids = torch.tensor([asked["input_ids"]])
    for _ in range(5):
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned


def adapter_on(model: Path, folder: Path, *, seed: int = 1, **settings) -> Path:
    """Save an adapter that changes what a model says: its weights are random, and none of them 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, tensor in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor.data, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@contextmanager
def note_shapes(part) -> Iterator[list[tuple[int, ...]]]:
    read = []
    hook = part.register_forward_hook(lambda _, args, __: read.append(tuple(args[0].shape)))
    try:
        yield read
    finally:
        hook.remove()


@contextmanager
def unchanged(model, ids) -> Iterator:
    """Yield the logits of a model, which are afterwards the same to the last bit, as all its tensors are."""
    plain, before = logits(model, ids), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield plain
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert logits(model, ids).equal(plain)


def logits(model, ids: list[int]):
    """Return what a model in memory gives for each next token of one row."""
    import torch

    model.eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def score_alone(model, context, continuation) -> float:
    """Return the log-probability of a continuation as transformers alone gives it: one sequence, no mask."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *continuation]]), use_cache=False).logits[0].double()
    rows = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
    return sum(row[token].item() for row, token in zip(rows, continuation, strict=True))
