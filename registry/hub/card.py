"""Write the model card that is published with a version: its metrics, report and lineage, and how to use it."""

from __future__ import annotations

import json
from typing import Any

from tunery.registry.losses import loss_unit
from tunery.registry.records import Version
from tunery.registry.versions.reports import is_imported

__all__ = ["model_card"]


def model_card(
    version: Version, *, base_model: str, repository: str, adapter: str = "", report: str = "", samples: str = ""
) -> str:
    """README.md of a published version, with the Hub's front matter.

    `adapter` is the adapter's folder in a repository that has the exact model too; `report` and `samples` are the
    Markdown pages of the version's report, empty where it has none.
    """
    front = {
        "base_model": base_model,
        "library_name": "transformers" if adapter else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "tunery", f"method:{version.method}"],
    }
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    return "\n".join(
        (
            f"---\n{header}\n---",
            f"# {version.name}",
            f"A fine-tune of `{base_model}` by the method `{version.method}`, published by Tunery.",
            _metrics(version),
            _report(version, report, samples),
            _lineage(version),
            _use(base_model, repository, adapter),
        )
    )


def _metrics(version: Version) -> str:
    if not version.metrics:
        return ""
    rows = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(version.metrics.items()))
    unit = f"Losses are in {loss_unit(version)}{_precision(version)}."
    return f"\n## Metrics\n\n{unit}\n\n| metric | value |\n|---|---|\n{rows}\n"


def _precision(version: Version) -> str:
    precision = version.manifest.get("precision")
    measured = precision.get("measured") if isinstance(precision, dict) else None
    return f", measured in {measured}" if measured in ("float32", "bfloat16") else ""


def _report(version: Version, report: str, samples: str) -> str:
    """Both pages without their titles, with the path of the picture as it is from the card."""
    pages = [page.split("\n", 1)[1].strip() for page in (report, samples) if "\n" in page]
    if not pages:
        return ""
    if samples:
        pages[-1] = "## Samples\n\n" + pages[-1]
    note = (
        "This section came with the version from where it was first published; it was not checked here.\n\n"
        if is_imported(version)
        else ""
    )
    return f"\n## Report\n\n{note}" + "\n\n".join(pages).replace("](loss.png)", "](report/loss.png)") + "\n"


def _lineage(version: Version) -> str:
    """Digests, and what the manifest says of data, seed and parameters."""
    manifest = version.manifest
    facts: list[tuple[str, Any]] = [
        ("version", version.name),
        ("digest", version.digest),
        ("base digest", version.base_digest),
        *((name, manifest[name]) for name in ("parent", "seed", "trainer", "job") if manifest.get(name) is not None),
    ]
    facts += [("data", f"{entry.get('sha256')} ({entry.get('rows')} rows)") for entry in _data(manifest)]
    lines = "\n".join(f"- {name}: `{value}`" for name, value in facts)
    parameters = manifest.get("parameters")
    shown = f"\n\n```json\n{json.dumps(parameters, indent=2, sort_keys=True)}\n```" if parameters else ""
    return f"\n## Lineage\n\n{lines}{shown}\n"


def _data(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    data = manifest.get("data") or []
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def _use(base_model: str, repository: str, adapter: str) -> str:
    if adapter:
        return f"""
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository}", subfolder="model")
tokenizer = AutoTokenizer.from_pretrained("{repository}", subfolder="model")
```

or the low-rank delta that Tunery serves, on the base:

```python
from peft import PeftModel

base = AutoModelForCausalLM.from_pretrained("{base_model}")
model = PeftModel.from_pretrained(base, "{repository}", subfolder="{adapter}")
```

or `tunery adapters pull {repository} tenant/name`.
"""
    return f"""
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_model}"), "{repository}")
```

or `tunery adapters pull {repository} tenant/name`.
"""
