"""Import torch, load the kernels and use the GPU, in a process that may take long or crash; prints JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Print what works here as one JSON object."""
    sys.stdout.write(json.dumps(_findings()) + "\n")


def _findings() -> dict[str, Any]:
    import torch

    from tunery.gateway.engine.models.native import kernels as serving
    from tunery.plugins.training.fused import kernels as training

    found: dict[str, Any] = {
        "torch": torch.__version__,
        "kernels": {
            "serving": serving.why_no_kernels(),
            "training": "" if training.load_kernels() else "they cannot be used on this machine",
        },
        "gpus": [],
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            product = float(
                (torch.ones(64, 64, device=f"cuda:{index}") @ torch.ones(64, 64, device=f"cuda:{index}"))[0, 0]
            )
            found["gpus"].append(
                {"name": torch.cuda.get_device_name(index), "free": free, "total": total, "right": product == 64.0}
            )
        import bitsandbytes

        found["bitsandbytes"] = bitsandbytes.__version__
    return found


if __name__ == "__main__":
    main()
