"""Networks: the shapes that batch norms of known networks see, a sample each.

The papers, from whose tables, figures and layers the shapes follow:

- ResNet-50 at 224 x 224: He et al. 2016, arXiv:1512.03385.
- EfficientNet-B0 at 224 x 224, the expanded channels, too: Tan and Le 2019, arXiv:1905.11946.
- DCGAN's generator: Radford et al. 2016, arXiv:1511.06434.
- pix2pix's U-Net, whose encoder ends at 1 x 1: Isola et al. 2017, arXiv:1611.07004.
- CBAM's spatial gate, a batch norm of one channel, in ResNet-50: Woo et al. 2018, arXiv:1807.06521.
- 3D U-Net, unpadded, of a tile of 132 x 132 x 116: Cicek et al. 2016, arXiv:1606.06650.
- Attention U-Net's gate in three dimensions, one channel at half of 160 x 160 x 96: Oktay et al. 2018,
  arXiv:1804.03999.
- PointNet of 1024 points: Qi et al. 2017, arXiv:1612.00593.
- SimCLR's and BYOL's heads, without positions: Chen et al. 2020, arXiv:2002.05709; Grill et al. 2020,
  arXiv:2006.07733.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Activation(NamedTuple):
    """One sample of a batch norm's input: channels and spatial sizes."""

    network: str
    channels: int
    spatial: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Values a channel."""
        return math.prod(self.spatial)

    @property
    def elements(self) -> int:
        """Values of a sample."""
        return self.channels * self.positions


def _square(network: str, *shapes: tuple[int, int]) -> tuple[Activation, ...]:
    return tuple(Activation(network, channels, (side, side)) for channels, side in shapes)


ACTIVATIONS = (
    *(Activation("PointNet", channels, ()) for channels in (256, 512)),
    *(Activation("SimCLR", channels, ()) for channels in (128, 2048)),
    Activation("BYOL", 4096, ()),
    *(Activation("PointNet", channels, (1024,)) for channels in (64, 128, 1024)),
    *_square(
        "ResNet-50", (64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (2048, 7)
    ),
    *_square("EfficientNet-B0", (32, 112), (96, 112), (144, 56), (240, 28), (672, 14), (1152, 7), (1280, 7)),
    *_square("DCGAN", (1024, 4), (512, 8), (256, 16), (128, 32)),
    *_square("pix2pix", (512, 1), (512, 2), (128, 64)),
    *_square("CBAM", (1, 56), (1, 7)),
    *(
        Activation("3D U-Net", channels, spatial)
        for channels, spatial in (
            *((64, (62, 62, 54)), (128, (60, 60, 52)), (128, (28, 28, 24)), (256, (26, 26, 22))),
            *((256, (11, 11, 9)), (512, (9, 9, 7)), (64, (44, 44, 28))),
        )
    ),
    Activation("Attention U-Net", 1, (80, 80, 48)),
)
"""The shapes, by network."""
