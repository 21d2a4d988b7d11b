"""A small GPT: a decoder-only transformer with pre-norm blocks (arXiv:1706.03762, arXiv:2002.04745).

It keeps no buffers, so replicas, a resumed run and an exported model need nothing but parameters.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

INIT_STD = 0.02
"""Of weights and embeddings, as in GPT-2."""


class Attention(nn.Module):
    """Causal self-attention over several heads; [N, L, width] to [N, L, width]."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width = {width} does not divide over {num_heads} heads")
        self.num_heads = num_heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Let each position look at itself and those before it."""
        # [N, L, 3·width] → three of [N, heads, L, width/heads]
        split = self.queries_keys_values(features).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        mixed: Tensor = self.out(heads.transpose(1, 2).flatten(-2))
        return mixed


class Block(nn.Module):
    """Attention and a two-layer network, each behind its own norm and with a shortcut."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Add what both parts make of the features."""
        features = features + self.attention(self.norm1(features))
        mixed: Tensor = self.contract(gelu(self.expand(self.norm2(features))))
        return features + mixed


class GPT(nn.Module):
    """Codes [N, L], int64, to logits of each next code [N, L, vocabulary]; L is at most `context`."""

    def __init__(self, vocabulary: int, context: int, width: int, num_blocks: int, num_heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        nn.init.normal_(self.position, std=INIT_STD)
        self.apply(_initialise)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of the code after each position."""
        features = self.embedding(codes) + self.position[: codes.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(features)))
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
