"""Known answers: the paper's Listing 1, dense float64 Jacobians, prescribed spectra, a flow with an exact density."""

import numpy as np
import timm
import torch
import zuko
from torch import Tensor, nn


def listing_one(model: nn.Module, images: Tensor, eps: float = 1e-6) -> Tensor:
    """JEPA-SCORE exactly as Listing 1 of arXiv 2510.05949 prints it."""
    J = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), inputs=images)
    with torch.inference_mode():
        J = J.flatten(2).permute(1, 0, 2)
        svdvals = torch.linalg.svdvals(J)
        return svdvals.clip_(eps).log_().sum(1)


def listing_one_spectrum(model: nn.Module, images: Tensor) -> Tensor:
    """The singular values that Listing 1 takes the logarithm of, (B, R)."""
    J = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), inputs=images)
    return torch.linalg.svdvals(J.flatten(2).permute(1, 0, 2))


def dense_jacobian(function, x: Tensor) -> Tensor:
    """float64 Jacobian of one sample after the other, with nothing shared between them, (B, K, D)."""
    rows = [torch.autograd.functional.jacobian(lambda s: function(s[None])[0], sample) for sample in x.double()]
    return torch.stack([row.flatten(1) for row in rows])


def matrix_of_spectrum(singular_values, n_columns: int, seed: int = 0) -> Tensor:
    """A (K, D) matrix with random singular vectors and the singular values prescribed, float64."""
    rng = np.random.default_rng(seed)
    k = len(singular_values)
    left = np.linalg.qr(rng.normal(size=(k, k)))[0]
    right = np.linalg.qr(rng.normal(size=(n_columns, k)))[0]
    return torch.from_numpy(left * np.asarray(singular_values) @ right.T)


def linear(matrix: Tensor) -> nn.Linear:
    """x -> A x."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=matrix.dtype)
    layer.weight = nn.Parameter(matrix.clone())
    return layer


def mlp(n_inputs: int = 12, n_components: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n_inputs, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, n_components))


def conv_net(n_components: int = 16, seed: int = 0) -> nn.Module:
    """Convolutions with BatchNorm whose running statistics are not trivial; in train mode, as training leaves it."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16 * 8 * 8, n_components),
    )
    net(torch.randn(16, 3, 32, 32))
    return net


def timm_resnet(n_components: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=n_components)


def timm_vit(n_components: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=n_components
    )


IMAGE_MODELS = {"conv net": conv_net, "ResNet": timm_resnet, "ViT": timm_vit}
VECTOR_MODELS = {"linear": lambda: linear(matrix_of_spectrum([3.0, 1.0, 0.2], 12)).float(), "MLP": mlp}


class FlowEncoder(nn.Module):
    """The bijection of a normalising flow as an encoder: z = T(x), so that log p(x) is known exactly."""

    def __init__(self, n_features: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.flow = zuko.flows.NSF(n_features, transforms=3, hidden_features=(32, 32)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.flow().transform(x)

    def base_log_prob(self, z: Tensor) -> Tensor:
        return self.flow().base.log_prob(z)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)


def random_images(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, (n, side, side, 3) uint8: coarse noise, blurred by enlarging it."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((n, 3, 8, 8)))
    smooth = nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
