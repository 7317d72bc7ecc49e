"""EVLF: latents of images and the text of their class, fused before the denoiser sees them.

Cai, Zou, Li, Gu & Zhang, CVPR 2026, arXiv 2603.07476, as their program has it: keys and values are
tokens of the image and of the text together, where the paper's equation has those of the text
alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddengine.system.errors import UserError

FEED_FORWARD = 2  # width of the hidden layer in units of the width


class CrossLayer(nn.Module):
    """Attention to fixed keys and values, then two linear layers; each is added and normalised."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, FEED_FORWARD * width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(FEED_FORWARD * width, width),
        )

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """(B, L, width) of tokens that look at a context (B, M, width)."""
        seen, _ = self.attention(tokens, context, context, need_weights=False)
        tokens = self.attention_norm(tokens + seen)
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))


class Fusion(nn.Module):
    """Latents (B, C, h, w) and text tokens (B, M, D) -> fused latents (B, C, h, w).

    With `residual` the result is added to the latents, and training starts from the latents as
    they are; published without.
    """

    def __init__(  # long: its options are listed
        self,
        channels: int,
        text_width: int,
        positions: int,
        *,
        width: int = 256,
        heads: int = 4,
        layers: int = 2,
        dropout: float = 0.1,
        residual: bool = False,
    ):
        super().__init__()
        self.residual = residual
        self.positions = nn.Embedding(positions, width)  # normal numbers at the start
        self.of_latents = nn.Conv2d(channels, width, 1)
        self.of_text = nn.Linear(text_width, width)
        self.layers = nn.ModuleList(CrossLayer(width, heads, dropout) for _ in range(layers))
        self.to_latents = nn.Conv2d(width, channels, 1)
        if residual:
            for parameter in self.to_latents.parameters():
                nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        """The fused latents. Raises UserError for latents of more places than there are positions.

        Latents are those of the encoder before they are scaled.
        """
        height, width = latents.shape[2:]
        places = height * width
        most = self.positions.num_embeddings
        if places > most:
            raise UserError(
                f"The fusion was made for latents of {most} places, and these have {height} x "
                f"{width}; train it on images of this size."
            )
        tokens = self.of_latents(latents).flatten(2).transpose(1, 2)
        tokens = tokens + self.positions.weight[:places]
        context = torch.cat([tokens, self.of_text(text)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, context)
        fused = self.to_latents(tokens.transpose(1, 2).unflatten(2, (height, width)))
        return latents + fused if self.residual else fused


class Projector(nn.Module):
    """Latents (B, C, h, w) -> vectors (B, D) that are compared with texts; for training alone."""

    def __init__(self, channels: int, text_width: int, width: int = 64):
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 4, stride=4)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.to_text = nn.Sequential(nn.Linear(16 * width, text_width), nn.LayerNorm(text_width))

    def forward(self, latents: Tensor) -> Tensor:
        """A vector of each latent."""
        reduced = self.reduce(latents)
        pooled = self.pool(reduced)
        return self.to_text(pooled.flatten(1))


def contrastive_loss(
    images: Tensor, texts: Tensor, classes: Tensor, temperature: float = 0.07
) -> Tensor:
    """The contrastive loss with several positives, of vectors (B, D) and classes (B,).

    All pairs of one class are positives. A row gives -log of the mean probability of its positives
    under the softmax of cosines / temperature; rows and columns are averaged. Its least value is
    the logarithm of the number of positives, not 0.
    """
    of_images = functional.normalize(images, dim=1)
    of_texts = functional.normalize(texts, dim=1)
    logits = of_images @ of_texts.T / temperature
    positive = classes.unsqueeze(1) == classes.unsqueeze(0)
    of_rows = _rows_loss(logits, positive)
    of_columns = _rows_loss(logits.T, positive.T)
    return (of_rows + of_columns) / 2


def _rows_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows of -log of the mean probability of the positives (B, B)."""
    log_probabilities = logits.log_softmax(1)
    of_positives = log_probabilities.masked_fill(~positive, -torch.inf)
    num_positives = positive.sum(1).to(logits)
    losses = num_positives.log() - of_positives.logsumexp(1)
    return losses.mean()


def mse_weight(step: int, rising: int, low: float = 0.05, high: float = 1.0) -> float:
    """The weight of the squared error in a step: it rises linearly from low to high.

    It does so over the first `rising` steps, published the first half of a training, then stays.
    """
    return low + (high - low) * min(1.0, step / max(1, rising))


def fusion_losses(  # long: arguments, and what they mean
    fusion: nn.Module,
    projector: nn.Module,
    latents: Tensor,
    text: Tensor,
    classes: Tensor,
    ends: Tensor,
    *,
    seen_text: Tensor | None = None,
    temperature: float = 0.07,
) -> tuple[Tensor, Tensor]:
    """(contrastive loss, squared error) of a batch; the fusion learns from their weighted sum.

    Args:
        fusion: the module that is trained.
        projector: latents -> vectors as wide as the text.
        latents: (B, C, h, w), not scaled.
        text: tokens (B, M, D).
        classes: (B,).
        ends: (B,) the place of the token that stands for a whole text, its end.
        seen_text: tokens as the fusion sees them where they are corrupted; None: `text`.
        temperature: of the contrastive loss.
    """
    fused = fusion(latents, text if seen_text is None else seen_text)
    rows = torch.arange(len(text), device=text.device)
    contrast = contrastive_loss(projector(fused), text[rows, ends], classes, temperature)
    return contrast, functional.mse_loss(fused, latents)
