"""The demo, end to end: three tenants' fine-tunes trained, registered, served together, asked,
swapped under load, a fourth trained through the API, measured.

Run it with `make demo`. State lies in build/demo; running it again skips what is trained already.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
from make_docs import docstring_rows

HERE = Path(__file__).parent
STATE = HERE.parents[1] / "build" / "demo"
TUNERY = str(Path(sys.executable).with_name("tunery"))
ENVIRONMENT = {**os.environ, "TUNERY_HOME": str(STATE / "home"), "HF_HUB_OFFLINE": "1"}
BASE = "smollm2-135m"
HELD_OUT_TICKETS = 30
API_TICKETS = 120
KEYS = ["team", "priority", "product", "summary"]
TEAMS = {"billing", "technical", "account", "shipping", "sales", "privacy"}
PRIORITIES = {"low", "normal", "high", "urgent"}


def main() -> None:
    started = time.monotonic()
    files = make_files()
    tunery("bases", "add", BASE)
    train("lora", "acme/docs", files["docs"], "--alias", "production", epochs=1, learning_rate=5e-4)
    train(
        "qlora",
        "globex/tickets",
        files["tickets"],
        "--val",
        str(files["tickets-held-out"]),
        epochs=2,
        learning_rate=1e-3,
    )
    train("full", "initech/finder", files["finder"], epochs=1, learning_rate=5e-5)
    train("lora", "acme/docs", files["docs-more"], "--from", "acme/docs@1", number=2, epochs=1, learning_rate=3e-4)
    if json.loads(capture("adapters", "show", "acme/docs@production", "--json"))["number"] != 1:
        tunery("adapters", "alias", "acme/docs", "production", "1", "--reason", "once more")
    heading("What the registry has")
    tunery("adapters", "list", "acme/docs")
    tunery("adapters", "list")
    asyncio.run(serve_and_ask(files["tickets"], files["tickets-held-out"]))
    print(f"\nThe whole demo took {time.monotonic() - started:.0f} s.")


def make_files() -> dict[str, Path]:
    """The data: docstrings of this machine's standard library, and the shipped tickets."""
    folder = STATE / "data"
    docs = docstring_rows(620)
    tickets = [json.loads(line) for line in (HERE / "tickets.jsonl").read_text().splitlines()]
    rows = {
        "docs": docs[:400],
        "docs-more": docs[400:620],
        "finder": docstring_rows(400, task="signature"),
        "tickets": tickets[HELD_OUT_TICKETS:],
        "tickets-held-out": tickets[:HELD_OUT_TICKETS],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: folder / f"{name}.jsonl" for name in rows}


def train(method: str, adapter: str, data: Path, *options: str, number: int = 1, **parameters: float) -> None:
    """Train a version unless it is there already, and say by how much the held-out loss fell."""
    heading(f"{method}: {adapter}@{number} from {data.name}")
    known = {
        f"{v['adapter']}@{v['number']}": v for v in json.loads(capture("adapters", "list", adapter, "--json") or "[]")
    }
    version = known.get(f"{adapter}@{number}")
    if version is None:
        settings = [word for name, value in parameters.items() for word in ("--set", f"{name}={value}")]
        arguments = ("--method", method, "--base", BASE, "--data", str(data), "--name", adapter, *options, *settings)
        version = json.loads(tunery("train", *arguments, "--json", show=False))
    base, tuned = version["metrics"]["base_loss"], version["metrics"]["eval_loss"]
    print(
        f"held-out loss: base {base:.3f}, tuned {tuned:.3f} ({100 * (tuned / base - 1):+.1f} %)  digest {version['digest'][:12]}"
    )
    if "delta_fidelity" in version["metrics"]:
        metrics = version["metrics"]
        print(
            f"served as a delta of {metrics['delta_bytes'] / 1e6:.1f} MB (mean rank {metrics['delta_mean_rank']:.0f}) that keeps "
            f"{100 * metrics['delta_fidelity']:.1f} % of the improvement"
        )


async def serve_and_ask(tickets: Path, held_out: Path) -> None:
    """Everything that needs the server, each tenant with a key of its own."""
    heading("A key for each tenant, and one for Prometheus")
    keys = {tenant: create_key(tenant) for tenant in ("acme", "globex", "initech")}
    keys["umbrella"] = create_key("umbrella", "infer", "train")
    metrics_key = create_key("ops", "metrics")
    server, url = start_server()
    clients = {
        tenant: openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for tenant, key in keys.items()
    }
    try:
        await one_prompt_for_all(clients)
        await another_tenants_model(clients["globex"])
        await json_answers(clients["globex"], held_out)
        await swap_under_load(clients["acme"])
        await train_through_the_api(clients["umbrella"], tickets)
        show_metrics(url, metrics_key)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def create_key(tenant: str, *scopes: str) -> str:
    """A new key of a tenant, which is shown to nobody here."""
    options = [word for scope in scopes for word in ("--scope", scope)]
    return tunery("keys", "create", "--tenant", tenant, *options, show=False).strip()


def start_server() -> tuple[subprocess.Popen[str], str]:
    """Start `tunery serve` and wait for the line that names its address."""
    heading(f"tunery serve --base {BASE} --quant nf4")
    command = [TUNERY, "serve", "--base", BASE, "--quant", "nf4", "--port", "0"]
    server = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    assert server.stderr is not None
    for line in server.stderr:
        print(line, end="")
        if line.startswith("ready: "):
            print(f"ready after {time.monotonic() - started:.1f} s")
            return server, line.split()[1]
    raise SystemExit("the server ended before it was ready")


async def one_prompt_for_all(clients: dict[str, openai.AsyncOpenAI]) -> None:
    """The same question to the base and to every adapter at once: one mixed batch."""
    question = "I was charged twice for my May invoice, please refund one payment."
    heading(f"One mixed batch: {question}")
    models = [BASE, "acme/docs", "globex/tickets", "initech/finder"]
    owners = [clients.get(model.partition("/")[0], clients["acme"]) for model in models]
    asked = (ask(client, model, question) for client, model in zip(owners, models, strict=True))
    for model, answer in zip(models, await asyncio.gather(*asked), strict=True):
        text = answer.choices[0].message.content or ""
        print(f"{model:16} {answer.system_fingerprint:32} {' '.join(text.split())[:100]}")


async def another_tenants_model(client: openai.AsyncOpenAI) -> None:
    """Another's model does not exist for a tenant."""
    heading("acme/docs for globex")
    try:
        await ask(client, "acme/docs", "Are you there?")
    except openai.NotFoundError as error:
        print(error)
    else:
        raise SystemExit("a tenant was answered by another's model")


async def json_answers(client: openai.AsyncOpenAI, held_out: Path) -> None:
    """How many held-out tickets are answered with valid JSON in the fixed format."""
    heading(f"Valid routing JSON on {HELD_OUT_TICKETS} held-out tickets")
    tickets = [json.loads(line)["messages"][0]["content"] for line in held_out.read_text().splitlines()]
    for model in (BASE, "globex/tickets"):
        answers = await asyncio.gather(*(ask(client, model, ticket) for ticket in tickets))
        valid = sum(is_routing(answer.choices[0].message.content or "") for answer in answers)
        print(f"{model:16} {valid}/{len(tickets)} ({100 * valid / len(tickets):.0f} %)")


def is_routing(text: str) -> bool:
    """Whether a text is the routing format and nothing else."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and list(value) == KEYS
        and all(isinstance(item, str) for item in value.values())
        and value["team"] in TEAMS
        and value["priority"] in PRIORITIES
    )


async def swap_under_load(client: openai.AsyncOpenAI) -> None:
    """Move acme/docs@production from version 1 to 2 while eight clients ask without a pause."""
    heading("acme/docs: production moved from 1 to 2 under load")
    versions: Counter[str] = Counter()
    failed: list[str] = []
    done = asyncio.Event()

    async def keep_asking() -> None:
        while not done.is_set():
            try:
                raw = await client.chat.completions.with_raw_response.create(
                    model="acme/docs",
                    messages=[{"role": "user", "content": "Document `shutil.move(src, dst)`."}],
                    max_tokens=16,
                    temperature=0,
                )
                versions[raw.headers["x-tunery-version"]] += 1
            except openai.OpenAIError as error:
                failed.append(str(error))

    clients = [asyncio.create_task(keep_asking()) for _ in range(8)]
    await asyncio.sleep(4)
    await asyncio.to_thread(tunery, "adapters", "alias", "acme/docs", "production", "2", "--reason", "demo")
    await asyncio.sleep(4)
    done.set()
    await asyncio.gather(*clients)
    print(f"answered by version 1: {versions['1']}, by version 2: {versions['2']}, failed: {len(failed)}")
    for failure in failed[:3]:
        print(failure)
    tunery("adapters", "history", "acme/docs")


async def train_through_the_api(client: openai.AsyncOpenAI, tickets: Path) -> None:
    """A job as OpenAI's guide has it, on the server that goes on answering, and its model's first answer."""
    heading(f"umbrella/desk through /v1/fine_tuning/jobs, from {API_TICKETS} tickets")
    rows = b"".join(tickets.read_bytes().splitlines(keepends=True)[:API_TICKETS])
    file = await client.files.create(file=("tickets.jsonl", rows), purpose="fine-tune")
    print(f"files.create: {file.id} {file.status}")
    job = await client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        suffix="desk",
        hyperparameters={"n_epochs": 1},
        extra_body={"tunery": {"adapter": "umbrella/desk", "parameters": {"learning_rate": 1e-3}}},
    )
    while (job := await client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
        await asyncio.sleep(1)
    events = [event async for event in client.fine_tuning.jobs.list_events(job.id)]
    steps = [event for event in events if event.message.startswith("Step ") and event.type == "metrics"]
    for event in (*events[:-5:-1], *steps[:1], *events[1::-1]):
        print(f"  {event.message}")
    if job.fine_tuned_model is None:
        raise SystemExit(f"the job {job.status}: {job.error}")
    answer = await ask(client, job.fine_tuned_model, "My parcel never came, where is it?")
    print(f"{job.fine_tuned_model}: {answer.choices[0].message.content}")


def show_metrics(url: str, key: str) -> None:
    """The metrics lines that show what happened."""
    import urllib.request

    heading("/metrics")
    wanted = (
        "tunery_requests_total",
        "tunery_generated_tokens_total",
        "tunery_adapter_loads_total",
        "tunery_adapter_cache_hits_total",
        "tunery_adapter_resident_bytes",
        "tunery_base_bytes",
        "vllm:lora_requests_info",
    )
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as response:
        for line in response.read().decode().splitlines():
            # Series that count nothing yet are left out.
            if line.startswith(wanted) and not line.endswith(" 0.0"):
                print(line)


async def ask(client: openai.AsyncOpenAI, model: str, question: str) -> Any:
    """One greedy answer."""
    return await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=64, temperature=0
    )


def tunery(*arguments: str, show: bool = True) -> str:
    """Run a command of ours, shown as typed, and return what it printed."""
    print("$ tunery " + " ".join(word.replace(str(STATE), "build/demo") for word in arguments), flush=True)
    done = subprocess.run([TUNERY, *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    if show:
        print(done.stdout.replace(str(STATE), "build/demo"), end="", flush=True)
    return done.stdout


def capture(*arguments: str) -> str:
    """The output of a command that may well fail, such as listing what is not there yet."""
    done = subprocess.run([TUNERY, *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    main()
