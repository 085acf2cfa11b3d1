"""Hold and check the settings of a training run, and compute its learning rate."""

from dataclasses import dataclass, field

from skjepa._utils.validation import check_choice
from skjepa.pretraining.augmentations import VectorViewOptions, ViewOptions

OBJECTIVES = ("sigreg", "vicreg", "info_nce", "invariance")
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True)
class PretrainConfig:
    """Hold the settings of `skjepa.pretraining.pretrain`.

    On one machine with a fixed number of threads they determine the resulting weights.

    Attributes
    ----------
    epochs, batch_size : int
        Number of epochs, and samples per batch. The last incomplete batch of an epoch is dropped.
    learning_rate, weight_decay : float
        Settings of AdamW; weight decay acts only on matrices and kernels.
    warmup : float
        Number of epochs in which the learning rate rises linearly.
    decay : float
        Share of the epochs, at the end, in which the learning rate falls linearly to zero.
    objective : {"sigreg", "vicreg", "info_nce", "invariance"}
        Loss of the scored output. "invariance" has no term against collapse; it serves to show a collapse, and the
        effect of weight decay or `spectral_norm` on it.
    sigreg_weight : float
        Weight l in the loss (1 - l) invariance + l SIGReg, where SIGReg includes its factor batch size.
    n_directions : int
        Number of random projections per step.
    spectral_norm : bool
        Whether to divide every weight matrix and kernel by its largest singular value during training (Miyato et al.,
        2018).
    projector_objective : one of the objectives, or None
        Second loss, on the output of an MLP over the pooled features; the MLP is dropped after training.
    projector_weight, projector_width : float, int
        Weight of the second loss, and width of the MLP's hidden layer; its output is half as wide.
    temperature : float
        Temperature of InfoNCE.
    n_views : int
        Number of views per image and step; "vicreg" and "info_nce" need two.
    views : ViewOptions or VectorViewOptions
        Options of the random views; the type determines whether samples are images or vectors.
    view_size : int or None
        Side of the views in pixels; by default the images' own. Random crops magnify, so views smaller than the image
        take less time and show objects at the scale that they have in whole images.
    full_size_share : float
        Share of the epochs, at the end, whose views have the images' own size. At most `decay`.
    mean, std : three floats
        Normalisation of pixels in [0, 1].
    precision : {"auto", "bfloat16", "float32"}
        "bfloat16" uses autocast: weights, losses and optimiser stay float32. "auto" uses it if the device supports it.
    n_watched : int
        Number of samples whose embedding statistics are recorded after each epoch. With 0 none are recorded, and a
        collapse is not detected.
    seed : int
        Seed of views, batches and initial weights.
    """

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 1.0
    decay: float = 0.3
    objective: str = "sigreg"
    sigreg_weight: float = 0.15
    n_directions: int = 256
    spectral_norm: bool = False
    projector_objective: str | None = None
    projector_weight: float = 1.0
    projector_width: int = 512
    temperature: float = 0.2
    n_views: int = 2
    views: ViewOptions | VectorViewOptions = field(default_factory=ViewOptions)
    view_size: int | None = None
    full_size_share: float = 0.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    precision: str = "auto"
    n_watched: int = 2048
    seed: int = 0

    def validate(self, n_samples: int) -> None:
        """Raise ValueError if a setting is not usable for this number of samples."""
        check_choice("objective", self.objective, OBJECTIVES)
        if self.projector_objective is not None:
            check_choice("projector_objective", self.projector_objective, OBJECTIVES)
        check_choice("precision", self.precision, PRECISIONS)
        for name in (self.objective, self.projector_objective):
            if name in ("vicreg", "info_nce") and self.n_views != 2:
                raise ValueError(f"objective {name!r} needs n_views=2; got {self.n_views}")
        if self.n_views < 2:
            raise ValueError(f"n_views must be at least 2; got {self.n_views}")
        if not 0 <= self.full_size_share <= self.decay <= 1:
            raise ValueError(
                "full_size_share and decay must satisfy 0 <= full_size_share <= decay <= 1; got "
                f"{self.full_size_share} and {self.decay}"
            )
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1; got {self.epochs}")
        if not 2 <= self.batch_size <= n_samples:
            raise ValueError(f"batch_size must lie in [2, {n_samples}], the number of samples; got {self.batch_size}")

    @property
    def decay_start(self) -> float:
        """Number of epochs after which the learning rate falls."""
        return self.epochs * (1 - self.decay)

    def learning_rate_at(self, epochs_done: float) -> float:
        """Return the learning rate after a possibly fractional number of epochs: rise, constant, fall."""
        rise = (epochs_done + 0.01) / (self.warmup + 0.01)  # not zero in the first step
        fall = (self.epochs - epochs_done) / max(self.epochs - self.decay_start, 1e-9)
        return self.learning_rate * min(1.0, rise, fall)
