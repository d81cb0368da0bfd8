"""Keep harmless warnings of other libraries off stderr."""

from __future__ import annotations

import logging
import os
import warnings

__all__ = ["silence_libraries"]


def silence_libraries() -> None:
    """Silence warnings that are known to be harmless.

    Call it before transformers, peft or bitsandbytes are imported.
    """
    # bitsandbytes warns about an optional package of CPU kernels that Tunery does not use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft asks transformers for a name that transformers is retiring.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`", category=UserWarning)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
