"""Random views of one sample, keyed by (seed, sample id, view): neither batch size nor resume changes a score."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torchvision.transforms import v2

from skjepa._utils.randomness import own_random_numbers

Transform = Callable[[Tensor], Tensor]


@contextmanager
def keyed_randomness(seed: int, sample_id: str, view: int) -> Iterator[None]:
    """Inside, torch, NumPy and `random` draw what (seed, sample_id, view) determines; after, they go on as before."""
    key = hashlib.blake2b(f"{seed}\0{sample_id}\0{view}".encode(), digest_size=8).digest()
    with own_random_numbers(int.from_bytes(key) >> 1):
        yield


def make_view(image: Tensor, transform: Transform, *, seed: int, sample_id: str, view: int) -> Tensor:
    """`transform` of one sample under its own randomness; raises ValueError where the shape changes."""
    with keyed_randomness(seed, sample_id, view):
        changed = transform(image)
    if not isinstance(changed, Tensor) or changed.shape != image.shape:
        found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(f"transform must keep the shape {tuple(image.shape)}; it returned {found}")
    return changed.to(image.dtype)


def default_transform(size: tuple[int, int]) -> Transform:
    """The usual training views of self-supervised encoders: resized crop, flip, colour jitter; stays in [0, 1]."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        ]
    )
