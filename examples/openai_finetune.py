"""Fine-tune as OpenAI's guides do it, on your own server.

    tunery serve
    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1
    export OPENAI_API_KEY="$(tunery keys create --tenant acme --scope infer --scope train)"
    python examples/openai_finetune.py

Nothing in here is Tunery's: with OpenAI's address and one of its models it would run there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

ROWS = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "demo" / "tickets.jsonl")
MODEL = os.environ.get("MODEL", "smollm2-135m")
EPOCHS = int(os.environ.get("EPOCHS", "1"))

client = OpenAI()

# 1. Upload the rows.
with ROWS.open("rb") as rows:
    file = client.files.create(file=rows, purpose="fine-tune")
file = client.files.wait_for_processing(file.id, poll_interval=1)
if file.status == "error":
    raise SystemExit(f"{ROWS.name} cannot be trained on: {file.status_details}")
print(f"{file.filename}: {file.bytes:,} bytes as {file.id}")

# 2. Start a job, and follow it.
job = client.fine_tuning.jobs.create(
    training_file=file.id,
    model=MODEL,
    suffix="tickets",
    seed=1,
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": EPOCHS}}},
)
print(f"{job.id} is {job.status}")
seen: set[str] = set()
while True:
    job = client.fine_tuning.jobs.retrieve(job.id)
    for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
        if event.id not in seen and event.type == "message":
            print(f"  {event.message.splitlines()[0]}")
        seen.add(event.id)
    if job.status in ("succeeded", "failed", "cancelled"):
        break
    time.sleep(1)
if job.fine_tuned_model is None:
    raise SystemExit(f"the job {job.status}: {job.error.message if job.error else 'no reason was given'}")

# 3. Its losses, and its first answer.
losses = client.files.content(job.result_files[0]).text.splitlines()
print(f"{job.fine_tuned_model}: {job.trained_tokens:,} tokens in {len(losses) - 1} steps")
answer = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=[{"role": "user", "content": "I was charged twice in March."}],
    max_tokens=60,
    temperature=0,
)
print(answer.choices[0].message.content)
