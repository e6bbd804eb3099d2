"""Train an adapter with Unsloth: python unsloth.py BASE ROWS OUT SEED.

Untried here: written from its documentation. Rank, alpha, rate and length as in ../qlora.yaml.
"""

import sys

from unsloth import FastLanguageModel  # has to be imported before trl
from unsloth.chat_templates import train_on_responses_only

# isort: split
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

base, rows, out, seed = sys.argv[1:]
model, tokenizer = FastLanguageModel.from_pretrained(base, max_seq_length=1024, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, random_state=int(seed))


def rendered(row: dict) -> dict:
    """Write the messages of a row as the base's chat template does."""
    return {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}


trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=load_dataset("json", data_files=rows, split="train").map(rendered),
    args=SFTConfig(
        output_dir=out,
        dataset_text_field="text",
        per_device_train_batch_size=8,
        num_train_epochs=3,
        learning_rate=2e-4,
        seed=int(seed),
        save_strategy="no",
        logging_steps=1,
        report_to="none",
    ),
)
# What begins a question and an answer in the base's chat template; here ChatML's.
trainer = train_on_responses_only(
    trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n"
)
trainer.train()
model.save_pretrained(out)
tokenizer.save_pretrained(out)
