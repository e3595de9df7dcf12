"""The paper's networks: encoder, decoder, and the autoencoder and classifier built from them.

Source: §2.1 and Figures 1 and 2. Figure 1 is lost, so the kernel sizes come from public reports on the same course
assignment, whose numbers agree with the paper's. Dropout follows every layer; the pooling-free variant is the
Appendix's ("adapting the input sizes").

    encoder     x (N, 1, 28, 28) -> conv 16, k3 -> (N, 16, 13, 13) -> conv 32, k3 -> (N, 32, 5, 5) -> linear -> z (N, n)
    decoder     z (N, n) -> linear -> (N, 32, 5, 5) -> transposed conv -> (N, 16, 13, 13) -> x_hat (N, 1, 28, 28)
    classifier  x -> encoder -> z -> linear -> logits (N, K)
"""

from torch import Tensor, nn

from fmcae.train.config import NetworkConfig


class Encoder(nn.Sequential):
    """x (N, 1, 28, 28) in [0, 1] -> z (N, latent_dim), at least 0."""

    def __init__(self, config: NetworkConfig) -> None:
        flat_size = 32 * 5 * 5 if config.pooling else 32 * 24 * 24
        super().__init__(
            nn.Conv2d(1, 16, kernel_size=3),  # (N, 16, 26, 26)
            *_activation(config),  # (N, 16, 13, 13); without pooling (N, 16, 26, 26)
            nn.Conv2d(16, 32, kernel_size=3),  # (N, 32, 11, 11); without pooling (N, 32, 24, 24)
            *_activation(config),  # (N, 32, 5, 5); without pooling (N, 32, 24, 24)
            nn.Flatten(),
            nn.Linear(flat_size, config.latent_dim),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )


class Decoder(nn.Sequential):
    """z (N, latent_dim) -> x_hat (N, 1, 28, 28) in [0, 1]."""

    def __init__(self, config: NetworkConfig) -> None:
        shape = (32, 5, 5) if config.pooling else (32, 24, 24)
        if config.pooling:
            up1 = nn.ConvTranspose2d(32, 16, kernel_size=4, stride=2, output_padding=1)  # (N, 16, 13, 13)
            up2 = nn.ConvTranspose2d(16, 1, kernel_size=3, stride=2, output_padding=1)  # (N, 1, 28, 28)
        else:
            up1 = nn.ConvTranspose2d(32, 16, kernel_size=3)  # (N, 16, 26, 26)
            up2 = nn.ConvTranspose2d(16, 1, kernel_size=3)  # (N, 1, 28, 28)
        super().__init__(
            nn.Linear(config.latent_dim, shape[0] * shape[1] * shape[2]),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Unflatten(1, shape),
            up1,
            nn.ReLU(),
            nn.Dropout(config.dropout),
            up2,
            nn.Sigmoid(),
            *([nn.Dropout(config.dropout)] if config.output_dropout else []),
        )


class Autoencoder(nn.Module):
    """x (N, 1, 28, 28) -> x_hat (N, 1, 28, 28), through z."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """x (N, 1, 28, 28) -> logits (N, class_count)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.linear = nn.Linear(config.latent_dim, config.class_count)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.encoder(x))  # type: ignore[no-any-return]


def _activation(config: NetworkConfig) -> list[nn.Module]:
    """ReLU, dropout and max pooling after a convolution, in the order that ``dropout_position`` says."""
    pool = [nn.MaxPool2d(2)] if config.pooling else []
    drop = nn.Dropout(config.dropout)
    return [nn.ReLU(), drop, *pool] if config.dropout_position == "before-pooling" else [nn.ReLU(), *pool, drop]
