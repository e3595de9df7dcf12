"""The paper's networks: encoder, decoder, and the autoencoder and classifier built from them.

Source: §2.1 and Figures 1 and 2. Figure 1 is lost, so the kernel sizes come from public reports on the same course
assignment, whose numbers agree with the paper's. Dropout follows every layer; the pooling-free variant is the
Appendix's ("adapting the input sizes").

With the padding of the transposed convolutions' output, the last three rows and columns of a reconstruction are the same
for every input: what depends on it is the interior. ``decoder_padding=False`` takes larger kernels instead, which reach
every pixel.

    encoder     x (N, 1, 28, 28) -> conv 16, k3 -> (N, 16, 13, 13) -> conv 32, k3 -> (N, 32, 5, 5) -> linear -> z (N, n)
    decoder     z (N, n) -> linear -> (N, 32, 5, 5) -> transposed conv -> (N, 16, 13, 13) -> x_hat (N, 1, 28, 28)
    classifier  x -> encoder -> z -> linear -> logits (N, K)

Images of 3 channels, or of 56 or 64 pixels, take the same layers: where an edge has S pixels, a multiple of 4, pooling
leaves S/4 - 2 of them, and the decoder gives S again.

The robust recipe trains the same classifier with batch normalization, which is folded into its weights in the end, and
a larger teacher for it.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from fmcae.train.config import NetworkConfig


class Encoder(nn.Sequential):
    """x (N, 1, 28, 28) in [0, 1] -> z (N, latent_dim), at least 0 but for ``latent_activation=False``."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(
            nn.Conv2d(config.channels, 16, kernel_size=3),  # (N, 16, 26, 26)
            *_activation(config),  # (N, 16, 13, 13); without pooling (N, 16, 26, 26)
            nn.Conv2d(16, 32, kernel_size=3),  # (N, 32, 11, 11); without pooling (N, 32, 24, 24)
            *_activation(config),  # (N, 32, 5, 5); without pooling (N, 32, 24, 24)
            nn.Flatten(),
            nn.Linear(32 * _side(config) ** 2, config.latent_dim),
            *([nn.ReLU(), nn.Dropout(config.dropout)] if config.latent_activation else []),
        )


class Decoder(nn.Sequential):
    """z (N, latent_dim) -> x_hat (N, 1, 28, 28) in [0, 1]."""

    def __init__(self, config: NetworkConfig) -> None:
        shape = (32, _side(config), _side(config))
        if config.pooling and not config.decoder_padding:
            up1 = nn.ConvTranspose2d(32, 16, kernel_size=5, stride=2)  # (N, 16, 13, 13)
            up2 = nn.ConvTranspose2d(16, config.channels, kernel_size=4, stride=2)  # (N, 1, 28, 28)
        elif config.pooling:
            up1 = nn.ConvTranspose2d(32, 16, kernel_size=4, stride=2, output_padding=1)  # (N, 16, 13, 13)
            up2 = nn.ConvTranspose2d(16, config.channels, kernel_size=3, stride=2, output_padding=1)  # (N, 1, 28, 28)
        else:
            up1 = nn.ConvTranspose2d(32, 16, kernel_size=3)  # (N, 16, 26, 26)
            up2 = nn.ConvTranspose2d(16, config.channels, kernel_size=3)  # (N, 1, 28, 28)
        activation = nn.ReLU if config.decoder_relu else nn.Identity  # which keeps the layers' names as they are
        super().__init__(
            nn.Linear(config.latent_dim, shape[0] * shape[1] * shape[2]),
            activation(),
            nn.Dropout(config.dropout),
            nn.Unflatten(1, shape),
            up1,
            activation(),
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


def _side(config: NetworkConfig) -> int:
    """The edge of the encoder's last maps: 5 of 28 pixels, 24 without pooling."""
    return config.size // 4 - 2 if config.pooling else config.size - 4


def _activation(config: NetworkConfig) -> list[nn.Module]:
    """ReLU, dropout and max pooling after a convolution, in the order that ``dropout_position`` says."""
    pool = [nn.MaxPool2d(2)] if config.pooling else []
    drop = nn.Dropout(config.dropout)
    return [nn.ReLU(), drop, *pool] if config.dropout_position == "before-pooling" else [nn.ReLU(), *pool, drop]


class NormalizedClassifier(nn.Module):
    """The paper's classifier with batch normalization in place of dropout, as the robust recipe trains it.

    x (N, 1, 28, 28) -> logits (N, class_count). It starts from an autoencoder's encoder. Of z it takes the units that are
    ``active`` (latent_dim,); the others are 0 in the classifier that it becomes, and left out in eight bits.
    """

    active: Tensor

    def __init__(self, config: NetworkConfig, encoder: Encoder, active: Tensor) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        for layer in encoder:
            if not isinstance(layer, nn.Dropout):
                layers.append(layer)
            if isinstance(layer, nn.Conv2d):
                layers.append(nn.BatchNorm2d(layer.out_channels))
            if isinstance(layer, nn.Linear):
                layers.append(nn.BatchNorm1d(layer.out_features))
        self.encoder = nn.Sequential(*layers)
        self.linear = nn.Linear(config.latent_dim, config.class_count)
        self.register_buffer("active", active.float())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.encoder(x) * self.active)  # type: ignore[no-any-return]

    @torch.no_grad()
    def folded(self) -> Classifier:
        """The paper's classifier that gives the same logits in evaluation mode: each normalization is in the weights."""
        classifier = Classifier(self.config).to(self.linear.weight.device)
        classifier.linear.load_state_dict(self.linear.state_dict())
        into = [layer for layer in classifier.encoder if isinstance(layer, nn.Conv2d | nn.Linear)]
        weighted = [layer for layer in self.encoder if isinstance(layer, nn.Conv2d | nn.Linear)]
        norms = [layer for layer in self.encoder if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
        for target, layer, norm in zip(into, weighted, norms, strict=True):
            fuse = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            target.weight, target.bias = fuse(layer.weight, layer.bias, *statistics)  # type: ignore[arg-type]
        for parameter in into[-1].parameters():  # a unit's weights and its bias
            parameter.mul_(self.active.view(-1, *[1] * (parameter.ndim - 1)))
        return classifier


class Teacher(nn.Module):
    """x (N, 1, 28, 28) -> logits (N, class_count): four residual blocks, whose labels a smaller network learns.

    Source: He, Zhang, Ren and Sun 2016, arXiv:1512.03385. The largest value of each channel stands for the whole picture,
    so that it matters little where something is.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1, bias=False),  # (N, 32, 28, 28)
            nn.BatchNorm2d(32),
            nn.ReLU(),
            ResidualBlock(32, 32),  # (N, 32, 28, 28)
            nn.MaxPool2d(2),
            ResidualBlock(32, 64),  # (N, 64, 14, 14)
            nn.MaxPool2d(2),
            ResidualBlock(64, 128),  # (N, 128, 7, 7)
            ResidualBlock(128, 128),  # (N, 128, 7, 7)
            nn.MaxPool2d(7),  # (N, 128, 1, 1); AdaptiveMaxPool2d has no repeatable gradient on a GPU
            nn.Flatten(),
            nn.Linear(128, config.class_count),
        ).to(memory_format=torch.channels_last)  # a third faster on a CPU

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """(N, inputs, H, W) -> (N, outputs, H, W): two convolutions, and a shortcut beside them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolutions(x) + self.shortcut(x))
