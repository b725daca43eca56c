"""Subjects whose answer is no answer, or another one each time."""

from __future__ import annotations

import os

import torch
from victim import Hostile


class NoTensor(Hostile):
    """Returns a tuple."""

    def strike(self, x):
        return (super().strike(x),)


class Nothing(Hostile):
    """Returns None."""

    def strike(self, x):
        super().strike(x)


class View(Hostile):
    """Returns a view of its input."""

    def strike(self, x):
        return x.view_as(x)


class WrongShape(Hostile):
    """Returns one channel less."""

    def strike(self, x):
        return super().strike(x)[:, 1:]


class WrongDtype(Hostile):
    """Returns float64 for float32."""

    def strike(self, x):
        return super().strike(x).double()


class NoGradient(Hostile):
    """Returns an output that requires no gradient."""

    def strike(self, x):
        return super().strike(x).detach()


class DiffersEachTime(Hostile):
    """Returns an output whose last bits are random."""

    def strike(self, x):
        y = super().strike(x)
        noise = torch.frombuffer(bytearray(os.urandom(y.numel())), dtype=torch.uint8).reshape(y.shape)
        last = torch.nextafter(y.detach(), torch.full_like(y, 9.0)) - y.detach()
        return y + last * (noise > 127)


class Endless(Hostile):
    """Returns a tensor of 10^12 elements that takes no memory."""

    def strike(self, x):
        return torch.zeros(1).expand(10**12)


class Meta(Hostile):
    """Returns a tensor without values."""

    def strike(self, x):
        return super().strike(x).to("meta")


class Sparse(Hostile):
    """Returns a sparse tensor."""

    def strike(self, x):
        return super().strike(x).to_sparse()


class Complex(Hostile):
    """Returns complex numbers."""

    def strike(self, x):
        return super().strike(x) + 0j


class _Rebel(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError("no function is right for this tensor")


class Subclass(Hostile):
    """Returns a tensor whose every operation raises."""

    def strike(self, x):
        return super().strike(x).as_subclass(_Rebel)


class ModifiesItsInput(Hostile):
    """Adds 1 to its input."""

    def strike(self, x):
        y = super().strike(x)
        x.data += 1
        return y


class FreesItsInput(Hostile):
    """Gives the memory of its input back."""

    def strike(self, x):
        y = super().strike(x)
        x.untyped_storage().resize_(0)
        return y


class _FreesItsCotangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        kept = g.clone()
        g.untyped_storage().resize_(0)
        return kept


class FreesItsCotangent(Hostile):
    """Gives the memory of the cotangent back."""

    def strike(self, x):
        return _FreesItsCotangent.apply(super().strike(x))


class FreesItsOutput(Hostile):
    """Returns a tensor whose memory it has given back."""

    def strike(self, x):
        y = super().strike(x)
        y.untyped_storage().resize_(0)
        return y


class NoWeight(Hostile):
    """Removes its parameters in forward."""

    def strike(self, x):
        y = super().strike(x)
        self.weight = self.bias = None
        return y


class OddGradients(Hostile):
    """Leaves gradients of another kind: sparse for the weight, on no device for the input."""

    def strike(self, x):
        y = super().strike(x)
        if x.requires_grad:
            x.register_post_accumulate_grad_hook(
                lambda leaf: setattr(leaf, "grad", leaf.grad.to("meta")) or None
            )
        self.weight.register_post_accumulate_grad_hook(
            lambda leaf: setattr(leaf, "grad", leaf.grad.to_sparse()) or None
        )
        return y


class OddBuffers(Hostile):
    """Puts a sparse tensor and a number where its buffers were."""

    def strike(self, x):
        y = super().strike(x)
        self.running_mean = self.running_mean.to_sparse()
        del self._buffers["running_var"]
        self.running_var = 3.0
        return y


class RaisesWhenLookedAt(Hostile):
    """Raises when its parameters are looked at after the forward."""

    def strike(self, x):
        y = super().strike(x)
        self.struck = True
        return y

    def __getattr__(self, name):
        if name == "weight" and self.__dict__.get("struck"):
            raise RuntimeError("do not look")
        return super().__getattr__(name)
