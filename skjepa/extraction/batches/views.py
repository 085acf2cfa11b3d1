"""Draw random views of a sample from (seed, sample id, view), so that batch size and resuming change no score."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torchvision.transforms import v2

from skjepa._utils.randomness import own_random_numbers

Transform = Callable[[Tensor], Tensor]


@contextmanager
def keyed_randomness(seed: int, sample_id: str, view: int) -> Iterator[None]:
    """Seed torch, NumPy and `random` by (seed, sample_id, view) within a ``with`` block, then restore their states."""
    key = hashlib.blake2b(f"{seed}\0{sample_id}\0{view}".encode(), digest_size=8).digest()
    with own_random_numbers(int.from_bytes(key) >> 1):
        yield


def make_view(image: Tensor, transform: Transform, *, seed: int, sample_id: str, view: int) -> Tensor:
    """Apply `transform` to one sample with its own random seed; raises ValueError if the shape changes."""
    with keyed_randomness(seed, sample_id, view):
        changed = transform(image)
    if not isinstance(changed, Tensor) or changed.shape != image.shape:
        found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(f"transform returned {found}; it must keep the shape {tuple(image.shape)}")
    return changed.to(image.dtype)


def default_transform(size: tuple[int, int]) -> Transform:
    """Return the usual training views of self-supervised encoders: random resized crop, flip and colour jitter.

    Parameters
    ----------
    size : (int, int)
        Height and width of the views.

    Returns
    -------
    callable
        From a tensor (3, H, W) in [0, 1] to a random view (3, *size) in [0, 1].
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.4, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        ]
    )
