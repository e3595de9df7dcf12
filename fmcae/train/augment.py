"""Augmentation: what a picture of one's own brings that Fashion-MNIST lacks, for whole batches on their device.

The data set's items face one way, stand upright, fill the frame and are photographed alike. :func:`augment` mirrors,
tilts, stretches and cuts them; makes them light, dark, flat, an outline or a drawing; adds shadows, blur, JPEG blocks,
coarse pixels, noise and remains of a background; and fits them to 28×28 again as preprocessing does.

Every random number comes from torch's global generators, so that an epoch can be repeated. Own code, because the
libraries' transforms take a batch with one set of parameters or image by image, and none fits an item to the frame
again in the same sampling.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

ITEM = 0.02  # an ink of more belongs to the item
TONES = torch.tensor([0.30, 0.14, 0.10, 0.10, 0.08, 0.16, 0.12])  # the shares of what ``_toned`` makes, in its order


def augment(x: Tensor, strong_share: float) -> Tensor:
    """Return a new batch (N, 1, 28, 28) float32 in [0, 1] from x of the same kind, its background 0.

    Each image is mirrored or not. The first ``strong_share`` of them, in [0, 1], are changed strongly; of the others
    the first half is tilted and stretched a little, and the second moves by a pixel at most. So the batch must be in
    random order.
    """
    x = torch.where(_chance(x, 0.5), x.flip(-1), x)
    count = round(strong_share * len(x))
    strong, mild, still = torch.tensor_split(x, [count, (count + len(x)) // 2])
    parts = ((strongly, strong), (_tilted, mild), (_shifted, still))
    return torch.cat([change(part) for change, part in parts if len(part)])


def strongly(x: Tensor) -> Tensor:
    """Change the tone, the place and the quality of each image of x (N, 1, 28, 28); as for :func:`augment`."""
    inside = _silhouette(x)
    x, inside = _cut(_shaded(_toned(x, inside)), inside)
    return _full_range(_degraded(_full_range(_placed(x, inside, turn=0.8, shear=0.15, stretch=0.15))))


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """(N, 1, 1, 1): a number for each image of x."""
    return torch.empty(len(x), 1, 1, 1, device=x.device).uniform_(low, high)


def _chance(x: Tensor, probability: float) -> Tensor:
    return _uniform(x, 0, 1) < probability


def _full_range(x: Tensor) -> Tensor:
    return x / x.amax(dim=(2, 3), keepdim=True).clamp_min(1e-3)


def _shifted(x: Tensor) -> Tensor:
    """Move each image by -1, 0 or 1 pixel along both axes."""
    padded = F.pad(x, (1, 1, 1, 1))
    down, right = (torch.randint(3, (len(x), 1), device=x.device) for _ in range(2))
    steps = torch.arange(28, device=x.device)
    rows, columns = (down + steps)[:, :, None], (right + steps)[:, None, :]
    return padded[:, 0][torch.arange(len(x), device=x.device)[:, None, None], rows, columns].unsqueeze(1)


def _tilted(x: Tensor) -> Tensor:
    return _placed(x, _silhouette(x), turn=0.3, shear=0.05, stretch=0.1)


def _silhouette(x: Tensor) -> Tensor:
    """Where the item is (N, 1, 28, 28), 0 or 1, with what lies between its pixels in their row and in their column."""
    item = x > ITEM
    steps = torch.arange(28, device=x.device)
    inside = torch.ones_like(item)
    for axis, position in ((2, steps.view(28, 1)), (3, steps)):
        first = torch.where(item, position, 28).amin(dim=axis, keepdim=True)
        last = torch.where(item, position, -1).amax(dim=axis, keepdim=True)
        inside &= (position >= first) & (position <= last)
    return inside.float()


def _toned(x: Tensor, inside: Tensor) -> Tensor:
    """As it is, negated, one flat tone, an outline, a few tones, a flat tone with details, or a paler item."""
    details = (_largest_near(x) - 1 + _largest_near(1 - x, beyond=1)) * inside
    rim = inside - 1 + _largest_near(1 - inside, beyond=1)
    tone, detail = _uniform(x, 0.25, 1), _uniform(x, -1, 1)
    levels = torch.randint(2, 5, (len(x), 1, 1, 1), device=x.device)
    variants = [
        x,
        inside * (1 - _uniform(x, 0.5, 1) * x),
        inside * tone,
        torch.maximum(rim, _uniform(x, 0, 1.5) * details) + inside * _uniform(x, -0.3, 0.2).clamp_min(0),
        torch.ceil(x * levels) / levels,
        inside * (tone + detail * details) + _uniform(x, -1, 1).clamp_min(0) * rim,
        inside * tone + (1 - tone) * x,
    ]
    kind = torch.multinomial(TONES, len(x), replacement=True).to(x.device)
    return torch.stack(variants)[kind, torch.arange(len(x), device=x.device)].clamp(0, 1)


def _largest_near(x: Tensor, beyond: float = 0.0) -> Tensor:
    """The largest of each pixel of x (N, 1, 28, 28) and its eight neighbours; those beyond the frame are ``beyond``."""
    for axis in (2, 3):
        padded = F.pad(x, (1, 1, 0, 0) if axis == 3 else (0, 0, 1, 1), value=beyond)
        near = [padded.narrow(axis, start, 28) for start in range(3)]
        x = torch.maximum(torch.maximum(near[0], near[1]), near[2])
    return x


def _shaded(x: Tensor) -> Tensor:
    """Gamma, then a shadow that falls from one side."""
    ramp = torch.linspace(-1, 1, 28, device=x.device)
    angle, depth = _uniform(x, 0, 2 * math.pi), _uniform(x, -0.5, 0.5).clamp_min(0)
    shadow = 1 - depth * (1 + torch.cos(angle) * ramp + torch.sin(angle) * ramp.view(28, 1)) / 2
    return (x ** torch.exp(_uniform(x, -0.7, 0.7)) * shadow).clamp(0, 1)


def _cut(x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Cut off a part of some items at each side."""
    ramp = _centres(x)
    for axis in (ramp, ramp.view(28, 1)):
        for side in (axis, -axis):
            kept = side < 1 - _uniform(x, 0, 0.5) * _chance(x, 0.05)
            x, inside = x * kept, inside * kept
    return x, inside


def _centres(x: Tensor) -> Tensor:
    """(28,): the pixels' centres along an axis, in [-1, 1]."""
    return (torch.arange(28, device=x.device) + 0.5) / 14 - 1


def _placed(x: Tensor, inside: Tensor, turn: float, shear: float, stretch: float) -> Tensor:
    """Tilt, shear and stretch each item, trim to it, and bring its longest edge to the frame, in one sampling.

    It is tilted by up to ``turn`` (radians), mostly less than half of it.
    """
    ramp, turned = _centres(x), _uniform(x, -1, 1).flatten()
    angle, lean = turn * turned * turned.abs(), _uniform(x, -shear, shear).flatten()
    wider = torch.exp(_uniform(x, -stretch, stretch)).flatten()
    cos, sin = torch.cos(angle), torch.sin(angle)
    # from the picture to the tilted one: q = matrix p, p = (column, row)
    matrix = torch.stack([cos * wider, (lean * cos - sin) / wider, sin * wider, (lean * sin + cos) / wider])
    matrix = matrix.T.reshape(-1, 2, 2)
    points = torch.stack([ramp.expand(28, 28), ramp.view(28, 1).expand(28, 28)]).reshape(2, 784)
    tilted, item = matrix @ points, inside.reshape(-1, 1, 784) > 0  # (N, 2, 784)
    low = torch.where(item, tilted, 9).amin(dim=2)
    high = torch.where(item, tilted, -9).amax(dim=2)
    is_empty = (low > high).any(dim=1, keepdim=True)
    low, high = torch.where(is_empty, -1, low), torch.where(is_empty, 1, high)
    pixel = 1 / 28
    half_edge = (high - low).amax(dim=1) / 2 + pixel
    half_edge = half_edge * (1 + 0.1 * torch.rand_like(half_edge))  # the trim is not always close
    centre = (low + high) / 2 + pixel * (2 * torch.rand_like(low) - 1)
    back = torch.linalg.inv(matrix)
    offset = back @ centre.unsqueeze(2)  # (N, 2, 1)
    grid = F.affine_grid(torch.cat([back * half_edge.view(-1, 1, 1), offset], dim=2), list(x.shape), False)
    return F.grid_sample(x, grid, align_corners=False)


def _degraded(x: Tensor) -> Tensor:
    """Blurred or sharpened, of coarse pixels, in JPEG's blocks, noisy, before remains of a background."""
    weight = _uniform(x, -0.06, 0.22) * _chance(x, 0.5)
    for shift in ((1, 1, 0, 0), (0, 0, 1, 1)):
        padded = F.pad(x, shift)
        near = padded[..., :-2] + padded[..., 2:] if shift[0] else padded[..., :-2, :] + padded[..., 2:, :]
        x = x * (1 - 2 * weight) + near * weight
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
    x = torch.where(_chance(x, 0.08), coarse, x)
    blocky = _chance(x, 0.1).flatten()
    x[blocky] = _jpeg(x[blocky], _uniform(x, 0.02, 0.25)[blocky])
    x = x + torch.randn_like(x) * _uniform(x, 0, 0.08) * _chance(x, 0.15)
    return torch.maximum(x, _remains(x)).clamp(0, 1)


def _remains(x: Tensor) -> Tensor:
    """A faint background (N, 1, 28, 28): even, a ramp or speckled, in the whole frame or beside the item only; mostly 0."""
    ramp = torch.linspace(0, 1, 28, device=x.device)
    ramp = torch.where(_chance(x, 0.5), ramp, ramp.view(28, 1))
    pattern = 1 - _uniform(x, 0, 1) * torch.where(_chance(x, 0.5), ramp, torch.rand_like(x))
    beside = _largest_near((x > ITEM).float())
    where = torch.where(_chance(x, 0.5), beside, torch.ones_like(beside))
    return _uniform(x, 0, 0.35) * _chance(x, 0.15) * pattern * where


def _jpeg(x: Tensor, step: Tensor) -> Tensor:
    """Round the cosine transform of blocks of 8×8 to multiples of ``step`` (N, 1, 1, 1), coarser for fine detail."""
    n = torch.arange(8, device=x.device)
    basis = torch.cos(math.pi / 8 * (n + 0.5) * n.view(8, 1)) / 2  # (frequency, pixel)
    basis[0] /= math.sqrt(2)
    blocks = F.pad(x, (0, 4, 0, 4)).view(-1, 4, 8, 4, 8).transpose(2, 3)  # (N, 4, 4, 8, 8)
    steps = (1 + (n + n.view(8, 1)) / 2) * step.view(-1, 1, 1, 1, 1)
    rounded = torch.round(basis @ blocks @ basis.T / steps) * steps
    back = basis.T @ rounded @ basis
    return back.transpose(2, 3).reshape(-1, 1, 32, 32)[..., :28, :28]
