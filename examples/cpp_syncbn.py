"""Synchronized batch norm whose passes over the data are a C++ extension, built on first use.

    pip install ninja
    python -m verify run --subject examples/cpp_syncbn.py:SyncBN

Needs a C++ compiler. A rank sends the count, the mean and the squared distances from it of each channel; all
ranks merge what was gathered in the same order. The kernels read dense (N, C, values) data in float32 and add
in double.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from torch.utils.cpp_extension import load_inline

SOURCE = r"""
#include <torch/extension.h>
#include <tuple>

// x[(i * channels + c) * length + k] is value k of sample i in channel c.
struct View {
    const float* data;
    int64_t samples, channels, length;
    explicit View(const torch::Tensor& x)
        : data(x.const_data_ptr<float>()), samples(x.size(0)), channels(x.size(1)), length(x.size(2)) {}
    int64_t row(int64_t i, int64_t c) const { return (i * channels + c) * length; }
};

// The mean of each channel, and the sum of squared distances from it.
std::tuple<torch::Tensor, torch::Tensor> moments(const torch::Tensor& x) {
    View v(x);
    auto mean = torch::zeros({v.channels}), m2 = torch::zeros({v.channels});
    const int64_t count = v.samples * v.length;
    for (int64_t c = 0; c < v.channels; c++) {
        double sum = 0, square = 0;
        for (int64_t i = 0; i < v.samples; i++)
            for (int64_t k = 0; k < v.length; k++)
                sum += v.data[v.row(i, c) + k];
        const double mu = count ? sum / count : 0;
        for (int64_t i = 0; i < v.samples; i++)
            for (int64_t k = 0; k < v.length; k++) {
                const double d = v.data[v.row(i, c) + k] - mu;
                square += d * d;
            }
        mean.data_ptr<float>()[c] = mu;
        m2.data_ptr<float>()[c] = square;
    }
    return {mean, m2};
}

// (x - mean) * scale + shift.
torch::Tensor normalise(const torch::Tensor& x, const torch::Tensor& mean, const torch::Tensor& scale,
                        const torch::Tensor& shift) {
    View v(x);
    auto y = torch::empty_like(x);
    auto out = y.data_ptr<float>();
    for (int64_t i = 0; i < v.samples; i++)
        for (int64_t c = 0; c < v.channels; c++) {
            const float mu = mean.const_data_ptr<float>()[c], a = scale.const_data_ptr<float>()[c];
            const float b = shift.const_data_ptr<float>()[c];
            for (int64_t k = 0; k < v.length; k++)
                out[v.row(i, c) + k] = (v.data[v.row(i, c) + k] - mu) * a + b;
        }
    return y;
}

// Sum g, and sum g (x - mean) invstd.
std::tuple<torch::Tensor, torch::Tensor> backward_sums(const torch::Tensor& x, const torch::Tensor& g,
                                                       const torch::Tensor& mean,
                                                       const torch::Tensor& invstd) {
    View v(x), dy(g);
    auto sums = torch::zeros({v.channels}), products = torch::zeros({v.channels});
    for (int64_t c = 0; c < v.channels; c++) {
        const double mu = mean.const_data_ptr<float>()[c], r = invstd.const_data_ptr<float>()[c];
        double sum = 0, product = 0;
        for (int64_t i = 0; i < v.samples; i++)
            for (int64_t k = 0; k < v.length; k++) {
                const int64_t at = v.row(i, c) + k;
                sum += dy.data[at];
                product += dy.data[at] * ((v.data[at] - mu) * r);
            }
        sums.data_ptr<float>()[c] = sum;
        products.data_ptr<float>()[c] = product;
    }
    return {sums, products};
}

// (g - mean_g - xhat * mean_gx) * scale, with xhat = (x - mean) invstd.
torch::Tensor grad_input(const torch::Tensor& x, const torch::Tensor& g, const torch::Tensor& mean,
                         const torch::Tensor& invstd, const torch::Tensor& scale,
                         const torch::Tensor& mean_g, const torch::Tensor& mean_gx) {
    View v(x), dy(g);
    auto dx = torch::empty_like(x);
    auto out = dx.data_ptr<float>();
    for (int64_t i = 0; i < v.samples; i++)
        for (int64_t c = 0; c < v.channels; c++) {
            const float mu = mean.const_data_ptr<float>()[c], r = invstd.const_data_ptr<float>()[c];
            const float a = scale.const_data_ptr<float>()[c];
            const float mg = mean_g.const_data_ptr<float>()[c], mgx = mean_gx.const_data_ptr<float>()[c];
            for (int64_t k = 0; k < v.length; k++) {
                const int64_t at = v.row(i, c) + k;
                const float xhat = (v.data[at] - mu) * r;
                out[at] = (dy.data[at] - mg - xhat * mgx) * a;
            }
        }
    return dx;
}
"""

extension = load_inline(
    "cpp_syncbn", SOURCE, functions=["moments", "normalise", "backward_sums", "grad_input"]
)


def dense(x: torch.Tensor) -> torch.Tensor:
    """Return `x` (N, C, ...) as contiguous float32 data (N, C, values)."""
    values = x[0, 0].numel() if x.shape[0] and x.shape[1] else 0
    return x.reshape(x.shape[0], x.shape[1], values).float().contiguous()


def as_given(data: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a copy of dense data in the shape, dtype and memory format of `like`.

    A view is not returned from an autograd function: its caller could not change it in place.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.dim(), torch.contiguous_format)
    as_last = like.is_contiguous(memory_format=last) and not like.is_contiguous()
    found = torch.empty(
        like.shape, dtype=like.dtype, memory_format=last if as_last else torch.contiguous_format
    )
    return found.copy_(data.reshape(like.shape))


def merged(count: int, mean: torch.Tensor, m2: torch.Tensor, group) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Return count, mean and biased variance over the ranks of `group`; None is this rank alone."""
    if group is None or dist.get_world_size(group) == 1:
        return count, mean, m2 / max(count, 1)
    own = torch.cat([torch.tensor([float(count)]).double(), mean.double(), m2.double()])
    sent = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sent, own, group=group)
    counts = torch.stack([one[0] for one in sent]).unsqueeze(1)
    means, squares = torch.stack([one[1:] for one in sent]).chunk(2, dim=1)
    total = int(counts.sum())
    mean = (counts * means).sum(0) / max(total, 1)
    m2 = (squares + counts * (means - mean) ** 2).sum(0)
    return total, mean.float(), (m2 / max(total, 1)).float()


class Normalise(torch.autograd.Function):
    """y = (x - mean) * invstd * weight + bias; with a count, gradients go through mean and invstd, too."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, invstd, count, group):  # noqa: D102
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.count, ctx.group = count, group
        scale = invstd if weight is None else invstd * weight.float()
        shift = torch.zeros_like(mean) if bias is None else bias.float()
        return as_given(extension.normalise(dense(x), mean, scale, shift), x)

    @staticmethod
    def backward(ctx, dy):  # noqa: D102
        x, weight, mean, invstd = ctx.saved_tensors
        data, g = dense(x), dense(dy)
        sums, products = extension.backward_sums(data, g, mean, invstd)
        grad_weight = products.to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = (
            sums.to(mean.dtype if weight is None else weight.dtype) if ctx.needs_input_grad[2] else None
        )
        means = None
        if ctx.count is not None:  # whatever this rank needs: its peers wait for it
            both = torch.cat([sums, products])
            if ctx.group is not None and dist.get_world_size(ctx.group) > 1:
                dist.all_reduce(both, group=ctx.group)
            means = (both / max(ctx.count, 1)).chunk(2)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None, None
        scale = invstd if weight is None else invstd * weight.float()
        if means is None:  # a NaN of x has no part in it
            zero = torch.zeros_like(scale)
            dx = extension.normalise(g, zero, scale, zero)
        else:
            dx = extension.grad_input(data, g, mean, invstd, scale, *means)
        return as_given(dx, x), grad_weight, grad_bias, None, None, None, None


def refuse_one(count: int) -> None:
    """Raise if there is a single value, whose variance says nothing."""
    if count == 1:
        raise ValueError("Expected more than 1 value a channel, but got 1.")


class SyncBN(torch.nn.modules.batchnorm._BatchNorm):
    """Batch norm over all ranks of `process_group`, in float32 on the CPU."""

    syncbn_verify: ClassVar = {"domain": {"dtypes": ["float32", "bfloat16", "float16"]}}

    def __init__(
        self,
        num_features,
        eps=1e-5,
        momentum=0.1,
        affine=True,  # noqa: FBT002
        track_running_stats=True,  # noqa: FBT002
        process_group=None,
        device=None,
        dtype=None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised `x`."""
        if x.dim() < 2 or x.shape[1] != self.num_features:
            raise ValueError(f"Expected {self.num_features} channels, but got {tuple(x.shape)}.")
        if not x.is_floating_point():
            raise TypeError(f"Expected a floating-point input, but got {x.dtype}.")
        if not self.training and self.running_mean is not None:
            mean, var = self.running_mean.float().clone(), self.running_var.float()
            return self._normalise(x, mean, var, None, None)
        group = (self.process_group or dist.group.WORLD) if self.training else None
        data = dense(x.detach())
        count, mean, var = merged(data.shape[0] * data.shape[2], *extension.moments(data), group)
        refuse_one(count)
        if self.training and self.track_running_stats:
            self._track(count, mean, var)
        return self._normalise(x, mean, var, count, group)

    def _track(self, count, mean, var):
        self.num_batches_tracked.add_(1)
        if count:
            factor = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            for buffer, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
                buffer.copy_((1 - factor) * buffer.float() + factor * new)

    def _normalise(self, x, mean, var, count, group):
        invstd = 1.0 / (var + self.eps).sqrt()
        return Normalise.apply(x, self.weight, self.bias, mean, invstd, count, group)
