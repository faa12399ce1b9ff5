"""Random changes of generated images, whose sizes are learned: turned, enlarged, moved, brighter, of more contrast.

Photographs of one kind of thing differ by such changes more than by most others, and a generator that has to draw each
of them anew draws fewer. So it draws an image, and a part of its random input that it does not see changes that. The
changes are part of what is trained: each class has a size of its own for each, which grows where class means of
features are met better with it, and shrinks where they are not, as for classes that differ by nothing but brightness.

An affine map of the places that pixels are taken from is differentiable (Jaderberg et al. 2015, arXiv 1506.02025), so
its sizes are learned as the weights are. Only the release enters: post-processing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Change(NamedTuple):
    """One kind of change: its size is where it begins, and at most what it may become."""

    first: float
    most: float


CHANGES = {  # stored generators depend on their order, and on `most`
    "zoom": Change(0.1, 1.0),  # logarithm of how much farther out pixels are taken from: above 0, things look smaller
    "turn": Change(0.1, math.pi),  # radians
    "columns": Change(0.05, 1.0),  # half widths, to the left
    "rows": Change(0.05, 1.0),  # half heights, up
    "contrast": Change(0.15, 2.0),  # logarithm of the factor of a logit's distance from the image's mean
    "brightness": Change(0.15, 4.0),  # added to logits
}


class Variation(nn.Module):
    """Images from logits, each changed at random by at most the sizes that were learned for its class."""

    def __init__(self, class_count: int) -> None:
        super().__init__()
        self.sizes = nn.Embedding(class_count, len(CHANGES))  # logits of shares of `Change.most`
        with torch.no_grad():
            self.sizes.weight[:] = torch.tensor([change.first / change.most for change in CHANGES.values()]).logit()

    def sizes_of(self, classes: Tensor) -> Tensor:
        """Return N×len(CHANGES): how far each change goes, at most, to either side."""
        most = torch.tensor([change.most for change in CHANGES.values()], device=classes.device)
        return most * self.sizes(classes).sigmoid()

    @torch.inference_mode()
    def mean_sizes(self) -> dict[str, float]:
        """Return the learned size of each change, the mean over classes."""
        weight = self.sizes.weight
        sizes = self.sizes_of(torch.arange(len(weight), device=weight.device)).mean(dim=0)
        return dict(zip(CHANGES, sizes.tolist(), strict=True))

    def forward(self, logits: Tensor, latents: Tensor, classes: Tensor) -> Tensor:
        """Change images.

        Args:
            logits: N×C×R×R float32; their sigmoid is the image without changes.
            latents: N×len(CHANGES), standard normal: zero changes nothing, and each change is uniform within its size.
            classes: int64 N.

        Returns:
            N×C×R×R float32 in [0, 1]; what comes in from outside an image is its reflection.
        """
        amounts = self.sizes_of(classes) * (2 * torch.special.ndtr(latents.float()) - 1)
        zoom, turn, columns, rows, contrast, brightness = amounts[:, :, None, None].unbind(dim=1)  # N x 1 x 1
        means = logits.mean(dim=(1, 2, 3), keepdim=True)
        images = ((logits - means) * contrast[:, None].exp() + means + brightness[:, None]).sigmoid()
        side = logits.shape[-1]
        places = (torch.arange(side, device=logits.device) * 2 + 1) / side - 1  # centres of pixels, -1 to 1
        along, across = zoom.exp() * turn.cos(), zoom.exp() * turn.sin()
        x = along * places - across * places[:, None] + columns  # N x R x R
        y = across * places + along * places[:, None] + rows
        return functional.grid_sample(
            images, torch.stack([x, y], dim=-1), padding_mode="reflection", align_corners=False
        )
