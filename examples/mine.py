"""A SyncBN of one's own, to be verified with `python -m verify run --subject examples/mine.py:SyncBN`."""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce


class SyncBN(torch.nn.BatchNorm2d):
    """Batch norm over all ranks; `all_reduce` carries the gradient. It forgets something: see what is reported."""

    syncbn_verify = {"domain": {"dims": [4], "dtypes": ["float32"], "groups": ["world"], "empty": "never"}}

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        mean = all_reduce(x.mean(dim=(0, 2, 3))) / dist.get_world_size()
        var = all_reduce((x - mean[:, None, None]).square().mean(dim=(0, 2, 3))) / dist.get_world_size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        y = (x - mean[:, None, None]) / (var + self.eps).sqrt()[:, None, None]
        return y * self.weight[:, None, None] + self.bias[:, None, None]
