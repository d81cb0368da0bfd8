"""Which architectures are served exactly, by `model_type`, and why the others are not.

Exact means: the log-probabilities of transformers' own forward pass in float32, alone and in a batch, with and without
the prefix cache, with a LoRA on attention; and a LoRA trained here is served as it was trained.
tests/gateway/engine/models/test_matrix.py checks both lists against the installed transformers. An architecture in
neither is refused, because nobody has verified it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunery.registry.errors import ArtifactRefused

__all__ = ["EXACT", "REFUSED", "exact_context", "refuse_architecture", "refuse_folder"]

_EXACT = """
    afmoe apertus arcee aria_text axk1 beam biogpt bitnet cohere cohere2 cohere2_moe ctrl cwm dbrx deepseek_v2 deepseek_v3 dots1
    ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo flint gemma gemma2 gemma3_text gemma4_text glm glm4 glm4_moe glm4_moe_lite
    gpt-sw3 gpt2 gpt_bigcode gpt_neox gpt_oss granite granite_swa granitemoe granitemoe_swa granitemoeshared helium
    hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 laguna llama llama4_text mellum
    mimo_v2_flash minicpm3 minimax_m2 ministral ministral3 mistral mixtral nanochat nemotron olmo olmo2 olmo3
    olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2
    vaultgemma youtu
"""
EXACT = frozenset(_EXACT.split())
"""`model_type`s that are served exactly."""

_REASONS = {
    "it keeps a recurrent state, which a cache of keys and values cannot hold": """
        bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 minimax
        nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv xlstm zamba zamba2
        zaya""",
    "it is an encoder with a decoder": """
        bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus plbart prophetnet trocr
        whisper""",
    "it is an encoder, which reads in both directions": """
        bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer rembert roberta
        roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod""",
    "it reads images or sound as well; its text model alone may be served, where it is published": """
        cohere_compass_text emu3 fuyu gemma3 gemma3n gemma3n_text gemma4 gemma4_unified gemma4_unified_text git got_ocr2 llama4
        mllama moshi moss_transcribe_diarize phi4_multimodal""",
    "its attention adds a bias by distance (ALiBi and the like), which the engine's does not": """
        bloom cpmant inkling2_text inkling_text mpt""",
    "it chooses the tokens it attends to by an index of its own": """
        axk2 deepseek_v32 deepseek_v4 dots3_note dots3_note_text glm_moe_dsa hy_v4 minimax_m3_vl_text qwen4_exp qwen4_exp_text""",
    "it computes attention past transformers' interface for it": """
        codegen diffllama doge falcon gpt_neo gpt_neox_japanese gptj longcat_flash openai-gpt""",
    "it counts positions by how rows lie in a batch": "xglm",
    "it runs its layers several times over, with other keys each time": "hrm_text",
    "its output head has layers of its own, whose adapters the engine would not apply": "modernbert-decoder",
    "it reads bytes in patches instead of tokens": "blt",
    "it only drafts for another model": "gemma4_assistant gemma4_unified_assistant",
}
REFUSED: Mapping[str, str] = {kind: reason for reason, kinds in _REASONS.items() for kind in kinds.split()}
"""`model_type`s that are refused, with the reason."""

_LIMITS = {"llama4_text": "attention_chunk_size", "phimoe": "sliding_window"}
"""Settings that bound the context within which the engine's full attention is what the architecture means."""
PHI3_CONTEXT = 4096
"""Phi-3's original context where its config does not give one, as in transformers."""
_WITH_HEAD = ("ForCausalLM", "LMHeadModel")


def refuse_architecture(config: Mapping[str, Any], title: str) -> None:
    """Raise ArtifactRefused where the base with this config.json, called `title`, cannot be served exactly."""
    kind = config.get("model_type")
    reason = None
    if kind not in EXACT:
        reason = REFUSED.get(str(kind), "nobody has verified that it is served exactly")
    classes = config.get("architectures")
    if (
        reason is None
        and isinstance(classes, list)
        and classes
        and not any(str(c).endswith(_WITH_HEAD) for c in classes)
    ):
        reason = f"{', '.join(map(str, classes))} has no head for the next token"
    if reason is not None:
        raise ArtifactRefused(
            f"{title} is of the architecture {kind!r}, which is not supported: {reason} (docs/engine.md has the list)",
            code="unsupported_base",
        )


def refuse_folder(folder: Path, title: str) -> None:
    """The same for the base in `folder`. A folder without a readable config.json is left to the code that loads it."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return
    if isinstance(config, dict):
        refuse_architecture(config, title)


def exact_context(config: Mapping[str, Any]) -> int | None:
    """The longest context, in tokens, within which positions and windows are the same for every row of a batch; None
    without one.

    LongRoPE (arXiv 2402.13753) rotates all keys differently once a sequence exceeds the original context, including
    those in the KV cache.
    """
    limits = [_original_context(config), config.get(_LIMITS.get(str(config.get("model_type")), ""))]
    return min((int(limit) for limit in limits if limit), default=None)


def _original_context(config: Mapping[str, Any]) -> Any:
    """The context after which LongRoPE switches factors; None for other position encodings."""
    for rope in (config.get("rope_parameters"), config.get("rope_scaling")):
        if isinstance(rope, dict) and ("long_factor" in rope or rope.get("rope_type") == "longrope"):
            name = "original_max_position_embeddings"
            return rope.get(name) or config.get(name) or PHI3_CONTEXT
    return None
