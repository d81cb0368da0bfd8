"""The native kernels as functions of tensors, which are checked here.

operations.py, attention.py and matmul.py call them and have a torch version for everything else.
All take bfloat16 tensors on the CPU and sum in float32; `kernels_for` says whether they can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from functools import lru_cache
from itertools import accumulate

import torch

from tunery.plugins.training.fused.kernels import Kernels, NF4Struct, SequencesStruct, TermStruct, load_kernels
from tunery.plugins.training.fused.packed_layout import PackedLayout
from tunery.plugins.training.fused.quantized_weight import QuantizedWeight

__all__ = [
    "HEAD_MULTIPLE",
    "Terms",
    "attend",
    "attend_backward",
    "cross_entropy",
    "kernels_for",
    "matmul_sum",
    "matmul_sum_kernels",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "swiglu",
    "swiglu_backward",
]

Tensor = torch.Tensor
Terms = Sequence[tuple[Tensor, Tensor | QuantizedWeight]]
"""Products a @ b to be summed, with a [T, k] and b [k, n]."""

HEAD_MULTIPLE = 32
"""What the size of a head must be a multiple of; the kernels also pad rows of attention weights to it."""


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The kernels, if they were built, run on this CPU, and take these tensors: contiguous bfloat16 on the CPU."""
    fit = all(x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    return load_kernels() if fit else None


def _check(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """The address of a contiguous CPU tensor of that dtype and shape; raise ValueError if it is another."""
    if (
        tensor.dtype != dtype
        or tuple(tensor.shape) != shape
        or not tensor.is_contiguous()
        or tensor.device.type != "cpu"
    ):
        raise ValueError(
            f"{name} must be contiguous {dtype} {shape} on the CPU, not {tensor.dtype} {tuple(tensor.shape)}"
        )
    return tensor.data_ptr()


def cross_entropy(kernels: Kernels, logits: Tensor, targets: Tensor, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """See operations.cross_entropy."""
    rows, size = logits.shape
    losses, correct = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.bool)
    ids = _check("targets", targets, torch.int64, rows)
    kernels.cross_entropy(logits.data_ptr(), ids, losses.data_ptr(), correct.data_ptr(), rows, size, int(with_gradient))
    return losses, correct


def rms_norm(kernels: Kernels, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See operations.rms_norm."""
    rows, width = x.shape
    y, scale = torch.empty_like(x), torch.empty(rows, 1)
    gain = _check("a norm's weight", weight, torch.float32, width)
    kernels.norm(x.data_ptr(), gain, y.data_ptr(), scale.data_ptr(), rows, width, epsilon)
    return y, scale


def rms_norm_backward(
    kernels: Kernels, grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, carried: Tensor
) -> tuple[Tensor, Tensor]:
    """See operations.rms_norm_backward."""
    rows, width = x.shape
    out, y = torch.empty_like(x), torch.empty_like(x)
    kernels.norm_backward(
        _check("the gradient", grad, x.dtype, rows, width),
        x.data_ptr(),
        _check("a norm's weight", weight, torch.float32, width),
        _check("the inverse roots", scale, torch.float32, rows, 1),
        _check("the carried gradient", carried, x.dtype, rows, width),
        out.data_ptr(),
        y.data_ptr(),
        rows,
        width,
    )
    return out, y


def rotate(kernels: Kernels, x: Tensor, cosine: Tensor, sine: Tensor, *, inverse: bool) -> None:
    """See operations.rotate."""
    rows, heads, size = x.shape
    tables = (_check("a rotary table", table, torch.float32, rows, size) for table in (cosine, sine))
    kernels.rotate(x.data_ptr(), *tables, rows, heads, size // 2, -1.0 if inverse else 1.0)


def swiglu(kernels: Kernels, gate: Tensor, up: Tensor) -> Tensor:
    """See operations.swiglu."""
    out = torch.empty_like(gate)
    kernels.swiglu(gate.data_ptr(), _check("up", up, gate.dtype, *gate.shape), out.data_ptr(), gate.numel())
    return out


def swiglu_backward(kernels: Kernels, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See operations.swiglu_backward."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
    address, up_address = (_check(name, x, gate.dtype, *gate.shape) for name, x in (("the gradient", grad), ("up", up)))
    kernels.swiglu_backward(
        address, gate.data_ptr(), up_address, grad_gate.data_ptr(), grad_up.data_ptr(), gate.numel()
    )  # fmt: skip
    return grad_gate, grad_up, grad


# -- attention --------------------------------------------------------------------------------------------------------


class _SequenceTable:
    """A PackedLayout for the kernels; `weights` is how many attention weights all its sequences have."""

    def __init__(self, layout: PackedLayout, heads: int, groups: int, size: int) -> None:
        counts = [len(context) for context in layout.contexts]
        padded = [-(-count // HEAD_MULTIPLE) * HEAD_MULTIPLE for count in counts]
        sizes = [heads * length * wide for length, wide in zip(layout.lengths, padded, strict=True)]
        starts = [own.start for own in layout.slices]
        first, places = accumulate(counts, initial=0), accumulate(sizes, initial=0)
        columns = [torch.tensor(list(column)) for column in (starts, layout.lengths, counts, first)]
        # The struct holds addresses only: the tensors must live as long.
        self._columns = [*columns, torch.cat(layout.contexts), torch.tensor(list(places))]
        addresses = [column.data_ptr() for column in self._columns]
        self.struct = SequencesStruct(*addresses, len(counts), sum(layout.lengths), heads, groups, size)
        self.weights = sum(sizes)


_table = lru_cache(maxsize=4)(_SequenceTable)
"""Made once for all layers, forward and backward."""


def attend(
    kernels: Kernels, q: Tensor, k: Tensor, v: Tensor, layout: PackedLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """See attention.attend: the output, and the attention weights of all sequences in one tensor."""
    tokens, heads, size = q.shape
    groups = k.shape[1]
    table, out = _table(layout, heads, groups, size), torch.empty_like(q)
    weights = q.new_empty(table.weights)
    keys, values = (_check("keys and values", x, q.dtype, tokens, groups, size) for x in (k, v))
    kernels.attend(q.data_ptr(), keys, values, out.data_ptr(), weights.data_ptr(), table.struct, scale)
    return out, weights


def attend_backward(
    kernels: Kernels, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, layout: PackedLayout, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See attention.attend_backward."""
    tokens, heads, size = q.shape
    groups = k.shape[1]
    table = _table(layout, heads, groups, size)
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    keys, values = (_check("keys and values", x, q.dtype, tokens, groups, size) for x in (k, v))
    kernels.attend_backward(
        _check("the gradient", grad, q.dtype, tokens, heads, size), q.data_ptr(), keys, values,
        _check("attention weights", weights, q.dtype, table.weights),
        grad_q.data_ptr(), grad_k.data_ptr(), grad_v.data_ptr(), table.struct, scale,
    )  # fmt: skip
    return grad_q, grad_k, grad_v


# -- sums of products -------------------------------------------------------------------------------------------------


def matmul_sum_kernels(terms: Terms, *others: Tensor | None) -> Kernels | None:
    """The kernels, if they take these terms and `others`, what is added and the output: bfloat16 on a CPU without AMX.

    Elements of rows are side by side, those of a weight in rows or columns, and there is an even number to sum over.
    """
    rows = [*(a for a, _ in terms), *(x for x in others if x is not None)]
    if any(x.dtype != torch.bfloat16 or x.stride(1) != 1 for x in rows) or rows[0].device.type != "cpu":
        return None
    dense = [b for _, b in terms if not isinstance(b, QuantizedWeight)]
    if any(b.dtype != torch.bfloat16 or len(b) % 2 or 1 not in b.stride() for b in dense):
        return None
    if any(isinstance(b, QuantizedWeight) and not b.fits_kernels for _, b in terms):
        return None
    kernels = load_kernels()
    return None if kernels is None or kernels.has_amx else kernels


def matmul_sum(kernels: Kernels, terms: Terms, onto: Tensor | None, out: Tensor | None) -> Tensor:
    """See matmul.matmul_sum; the terms are those that `matmul_sum_kernels` accepted."""
    a, b = terms[0]
    result = a.new_empty(len(a), b.shape[1]) if out is None else out
    rows, columns = result.shape
    for left, right in terms:
        if left.shape != (rows, right.shape[0]) or right.shape[1] != columns:
            raise ValueError(f"{tuple(left.shape)} times {tuple(right.shape)} is not [{rows}, {columns}]")
    added, stride = (None, 0) if onto is None else (onto.data_ptr(), onto.stride(0))
    if onto is not None and onto.shape != result.shape:
        raise ValueError(f"{tuple(onto.shape)} cannot be added to [{rows}, {columns}]")
    quantized = [right.struct() if isinstance(right, QuantizedWeight) else None for _, right in terms]
    structs = _term_structs(terms, quantized)
    kernels.product(structs, len(terms), added, stride, result.data_ptr(), result.stride(0), rows, columns)
    return result


def _term_structs(terms: Terms, quantized: Sequence[NF4Struct | None]) -> object:
    """The terms as the kernels take them; `quantized` has the structs of quantized weights and must outlive them."""
    structs = (TermStruct * len(terms))()
    for struct, (a, b), nf4 in zip(structs, terms, quantized, strict=True):
        struct.a, struct.a_row, struct.depth = a.data_ptr(), a.stride(0), b.shape[0]
        if isinstance(b, QuantizedWeight):
            assert nf4 is not None  # noqa: S101 - made for each quantized weight
            struct.packed, struct.b_row, struct.turned = addressof(nf4), b.width, b.transposed
        else:
            struct.turned = b.stride(1) != 1
            struct.b, struct.b_row = b.data_ptr(), b.stride(1 if struct.turned else 0)
    return structs
