"""Formats embedding vectors as a request asks for them."""

from __future__ import annotations

import base64
import math
import struct

from tunery.gateway.api.schemas.requests import EmbeddingRequest
from tunery.registry.errors import InvalidInput

__all__ = ["Vector", "format_vector"]

Vector = list[float] | str
"""As numbers, or as the base64 of little-endian float32."""


def format_vector(vector: list[float], request: EmbeddingRequest) -> Vector:
    """The first `dimensions` of a vector, scaled to length 1 unless `normalize` is false, in the request's encoding.

    Raises InvalidInput when the vector has fewer dimensions than the request asks for.
    """
    size = request.dimensions or len(vector)
    if size > len(vector):
        raise InvalidInput(
            f"dimensions is {str(size)[:20]} and this model's vectors have {len(vector)}; ask for at most that many",
            param="dimensions",
        )
    vector = vector[:size]
    if request.normalize is not False and (norm := math.hypot(*vector)) > 0:
        vector = [value / norm for value in vector]
    if request.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector
