"""A small residual network for 8×8 images (arXiv:1512.03385, with GroupNorm, arXiv:1803.08494).

GroupNorm keeps no running statistics, so replicas, a resumed run and an exported model need nothing but parameters.
"""

from torch import Tensor, nn
from torch.nn.functional import relu


class Block(nn.Module):
    """Two 3×3 convolutions with a shortcut; [N, in, H, W] to [N, out, H/stride, W/stride]."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, num_out)
        same = num_in == num_out and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(num_in, num_out, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Add the block's output to its input."""
        inner = relu(self.norm1(self.conv1(features)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


class ResNet(nn.Module):
    """Three stages of one block each, at 8×8, 4×4 and 2×2; [N, 1, 8, 8] to logits [N, num_classes]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            Block(width, width, stride=1),
            Block(width, 2 * width, stride=2),
            Block(2 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        logits: Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return logits
