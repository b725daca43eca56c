"""Stand-in kernels: the five aten operators behind `torch.nn.SyncBatchNorm`, written for the CPU.

torch has them for CUDA only. The table `KERNELS` maps each operator's name to a callable of its schema, and
`install` registers a table for the CPU; torch's own Python around them then runs unmodified.

Rules
-----
- Each follows what its CUDA kernel computes (aten/src/ATen/native/cuda/Normalization.cuh, by the names given
  below): the same formulas in the same dtypes and the same dtype checks. Only the order of summation is
  torch's on the CPU, but where it decides about roundings to a half dtype.
- The kernels index without a bounds check. What they would read beyond a tensor's end is NaN here, what they
  would write there is dropped.
- A result about a kernel on the CPU is a result about its stand-in, and reports say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from verify.subjects.block_sums import added_by_a_block
from verify.subjects.channels import accumulation_dtype, across, columns, native_layout, uncolumns

_INT_MAX = 2**31 - 1
_NAMES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}


def batch_norm_stats(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sqrt(var + eps) of each channel, the latter 0 where var and eps are.

    `batch_norm_collect_statistics_kernel`; its Welford and pairwise merge is a two-pass sum here.
    """
    if not input.is_floating_point():
        raise NotImplementedError(f'"batch_norm_stats" not implemented for {input.dtype}')
    data = columns(input)
    n = data.shape[1]
    mean = data.sum(1) / n
    var = (data - mean[:, None]).square().sum(1) / n
    invstd = (1.0 / (var.double() + eps).sqrt()).to(var.dtype)
    return mean, torch.where((var == 0) & (eps == 0), torch.zeros_like(var), invstd)


def batch_norm_gather_stats_with_counts(
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Merge mean and invstd (world, C) by `counts` (world,), update the buffers, return the merged (C,).

    `batch_norm_reduce_statistics_kernel`: variances are decoded from invstd; count is in the dtype of the
    buffers, and so is n + count; `n += count`, where n is an int, is added up in float32.
    """
    stored = input.dtype if running_mean is None else running_mean.dtype
    acc = accumulation_dtype(stored)
    _expect(acc, mean=mean, invstd=invstd)
    _expect(stored, running_mean=running_mean, running_var=running_var, counts=counts)
    epsilon = float(torch.tensor(eps, dtype=acc))
    avg, var_n, n = mean.new_zeros(mean.shape[1]), mean.new_zeros(mean.shape[1]), 0
    for m, s, count in zip(mean, invstd, counts, strict=True):
        total = torch.tensor(float(n)).to(stored) + count
        factor = (1.0 / total.double()).to(acc)
        weight, v = count.to(acc), 1.0 / s
        var_n = var_n + ((v * v - epsilon) * weight + (avg - m) * (avg - m) * n * weight * factor)
        avg = n * factor * avg + weight * factor * m
        n = _truncate(float(torch.tensor(float(n), dtype=acc) + weight))
    step = torch.tensor(momentum, dtype=acc)
    _update(running_mean, avg, step)
    _update(running_var, var_n / (n - 1), step)
    return avg, 1.0 / (var_n / n + epsilon).sqrt()


def batch_norm_elemt(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """Return weight * (input - mean) * invstd + bias; `batch_norm_transform_input_kernel`."""
    del eps
    acc = accumulation_dtype(input.dtype)
    _expect(_parameter_dtype(input, weight, bias), weight=weight, bias=bias)
    _expect(acc, mean=mean, invstd=invstd)
    centred = input.to(acc) - across(mean, input)
    if weight is not None:
        centred = across(_read(weight, input.shape[1]).to(acc), input) * centred
    y = centred * across(invstd, input)
    if bias is not None:
        y = y + across(_read(bias, input.shape[1]).to(acc), input)
    return native_layout(y.to(input.dtype), input)


def batch_norm_backward_reduce(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,  # noqa: FBT001
    weight_g: bool,  # noqa: FBT001
    bias_g: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sum dy, sum dy (x - mean), and the gradients of weight and bias; empty where not asked for.

    `batch_norm_backward_reduce_kernel`, where `Float2` takes the input's type in its constructor: products
    and what threads pass on are rounded to it. The kernel for channels_last rounds neither.
    """
    del bias_g
    stored = _parameter_dtype(input, weight, None)
    _expect(input.dtype, grad_output=grad_out)
    _expect(stored, weight=weight)
    _expect(accumulation_dtype(stored), mean=mean, invstd=invstd)
    g, xmu = columns(grad_out), columns(input) - mean[:, None]
    if g.dtype == input.dtype or (_by_channels(grad_out) and _by_channels(input)):
        sum_dy, sum_dy_xmu = g.sum(1), (g * xmu).sum(1)
    else:
        sum_dy = added_by_a_block(g, input)
        sum_dy_xmu = added_by_a_block((g * xmu).to(input.dtype).to(g.dtype), input)
    nothing = mean.new_empty(0)
    grad_weight = (sum_dy_xmu * invstd).to(stored) if weight_g else nothing
    return (*((sum_dy, sum_dy_xmu) if input_g else (nothing, nothing)), grad_weight, sum_dy.to(stored))


def batch_norm_backward_elemt(
    grad_out: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    count: Tensor,
) -> Tensor:
    """Return (dy - sum_dy / n - (x - mean) invstd^2 sum_dy_xmu / n) * weight * invstd.

    `batch_norm_backward_elemt_kernel`, with n the sum of the ranks' counts.
    """
    _expect(input.dtype, grad_output=grad_out)
    _expect(mean.dtype, invstd=invstd, weight=weight, sum_dy=sum_dy, sum_dy_xmu=sum_dy_xmu)
    norm = (1.0 / count.sum(dtype=torch.int64).double()).to(mean.dtype)
    scale = invstd if weight is None else _read(weight, input.shape[1]) * invstd
    slope = invstd * invstd * sum_dy_xmu * norm
    xmu = columns(input) - mean[:, None]
    grad = (columns(grad_out) - (sum_dy * norm)[:, None] - xmu * slope[:, None]) * scale[:, None]
    return native_layout(uncolumns(grad, input), input)


KERNELS: Mapping[str, Callable[..., Any]] = {
    kernel.__name__: kernel
    for kernel in (
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    )
}


def install(kernels: Mapping[str, Callable[..., Any]] = KERNELS) -> torch.library.Library:
    """Register `kernels` for the CPU in this process; they stay until the returned library is destroyed."""
    library = torch.library.Library("aten", "IMPL")
    for name, kernel in kernels.items():
        library.impl(name, kernel, "CPU")
    return library


def _expect(dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Raise as CUDA's `get_packed_accessor` does if a tensor's dtype is not the one that the kernel reads."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != dtype:
            given = _NAMES.get(tensor.dtype, str(tensor.dtype))
            raise RuntimeError(f"Expected {name} to have type {_NAMES.get(dtype, dtype)} but got {given}")


def _by_channels(tensor: Tensor) -> bool:
    """Return what `batch_norm_use_channels_last_kernels` does."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    return bool(tensor.is_contiguous() and tensor.stride(1) == 1)


def _parameter_dtype(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> torch.dtype:
    """Return the dtype that the kernel reads parameters in: the input's, or wider if they are not of it."""
    given = next((tensor.dtype for tensor in (weight, bias) if tensor is not None), input.dtype)
    return input.dtype if given == input.dtype else accumulation_dtype(input.dtype)


def _read(values: Tensor, channels: int) -> Tensor:
    """Return the first `channels` of `values` (C,), NaN beyond its end."""
    missing = max(channels - values.numel(), 0)
    return (
        torch.cat([values[:channels], values.new_full((missing,), math.nan)])
        if missing
        else values[:channels]
    )


def _update(buffer: Tensor | None, new: Tensor, step: Tensor) -> None:
    """Write into the buffer as a CUDA kernel does: no version counter notices.

    Below autograd none would; in inference mode nothing is below it, and a backward to come would raise.
    """
    if buffer is not None:
        size = min(buffer.numel(), new.numel())
        with torch.autograd._unsafe_preserve_version_counter(buffer):
            buffer[:size] = ((1 - step) * buffer[:size].to(new.dtype) + step * new[:size]).to(buffer.dtype)


def _truncate(total: float) -> int:
    """Return `total` as CUDA converts it to a 32-bit int: towards zero, saturating, NaN to 0."""
    return 0 if math.isnan(total) else int(max(min(total, _INT_MAX), -_INT_MAX - 1))
