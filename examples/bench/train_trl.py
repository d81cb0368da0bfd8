"""TRL's SFTTrainer as shipped on the rows of `tunery bench train`: LoRA of rank 16 on all linear layers, in bfloat16.

Needs `pip install trl==1.16.0` in any environment, and prints one JSON line. The loss of the held-out rows is taken
afterwards, with transformers alone: the mean over the answers' tokens, as Tunery takes it.
"""

import argparse
import json
import resource
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import datasets.fingerprint
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

# Names of the cache's entries: by pickling, which some versions of dill and pyarrow cannot, otherwise by chance.
datasets.fingerprint.Hasher.update = lambda self, value: self.m.update(uuid.uuid4().bytes)
datasets.fingerprint.Hasher.hash = classmethod(lambda cls, value: uuid.uuid4().hex)


def read(path: str) -> Dataset:
    rows = [json.loads(line)["messages"] for line in Path(path).read_text().splitlines()]
    return Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])


@torch.no_grad()
def held_out_loss(trainer: SFTTrainer, data: Dataset, tokenizer: Any) -> float:
    """Row by row, nothing padded."""
    trainer.model.eval()
    total, count = 0.0, 0
    for row in data:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
        while whole[-1] != tokenizer.eos_token_id:  # what a template writes after the end of a turn is not learned
            whole = whole[:-1]
        with torch.autocast("cpu", torch.bfloat16):
            logits = trainer.model(torch.tensor([whole])).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(whole[1:]), reduction="none")
        total, count = total + float(losses[len(prompt) - 1 :].sum()), count + len(whole) - len(prompt)
    return total / count


parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--held-out", default="")
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--batch", type=int, default=8)
given = parser.parse_args()
tokenizer = AutoTokenizer.from_pretrained(given.model)
config = SFTConfig(
    tempfile.mkdtemp(), per_device_train_batch_size=given.batch, max_steps=given.steps, report_to=[], learning_rate=2e-4,
    max_length=512, bf16=True, use_cpu=True, save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
    logging_steps=4,
)  # fmt: skip
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.bfloat16),
    args=config,
    train_dataset=read(given.data),
    processing_class=tokenizer,
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
start = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = next(entry["num_tokens"] for entry in reversed(trainer.state.log_history) if "num_tokens" in entry)
figures = {
    "system": "trl",
    "useful_tok_s": round(float(tokens) / seconds, 1),
    "peak_gb": round(peak * 1024 / 1e9, 2),
    "steps": given.steps,
}
if given.held_out:
    figures["eval_loss"] = round(held_out_loss(trainer, read(given.held_out), tokenizer), 4)
print(json.dumps(figures))
