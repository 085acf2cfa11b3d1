"""Settings of a training, what they must satisfy, and the learning rate they lead to."""

from dataclasses import dataclass, field

from skjepa._utils.validation import check_choice
from skjepa.pretraining.augmentations import VectorViewOptions, ViewOptions

OBJECTIVES = ("sigreg", "vicreg", "info_nce", "invariance")
PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `pretrain`. All of them decide the resulting weights, on one machine and number of threads.

    Attributes
    ----------
    epochs, batch_size : int
        The last incomplete batch of an epoch is dropped.
    learning_rate, weight_decay : float
        AdamW; weight decay acts on matrices and kernels only.
    warmup : float
        Epochs of linear rise of the learning rate.
    decay : float
        Share of the epochs, the last ones, in which it falls linearly to zero.
    objective : {"sigreg", "vicreg", "info_nce", "invariance"}
        Loss of the scored output. "invariance" has no term against collapse: it is there to show what happens then,
        and what weight decay or `spectral_norm` alone can do about it.
    sigreg_weight : float
        l of (1 - l) invariance + l SIGReg, SIGReg including its factor batch size.
    n_directions : int
        Random projections a step.
    spectral_norm : bool
        Divide every weight matrix and kernel by its largest singular value while training (Miyato et al., 2018).
    projector_objective : one of the objectives, or None
        A second loss, on an MLP over the pooled features that is thrown away after training.
    projector_weight, projector_width
        Weight of the second loss; width of the MLP's hidden layer, its output has half of it.
    temperature : float
        Of InfoNCE.
    n_views : int
        Views of each image a step; "vicreg" and "info_nce" take two.
    views : ViewOptions or VectorViewOptions
        Which of them says whether the samples are images or vectors.
    view_size : int or None
        Side of the views in pixels; the images' own by default. Random crops magnify: views smaller than the image
        cost less and show objects at the scale they have in whole images.
    full_size_share : float
        Share of the epochs, the last ones, whose views have the images' own size. At most `decay`.
    mean, std : three floats
        Normalisation of pixels in [0, 1].
    precision : {"auto", "bfloat16", "float32"}
        bfloat16 is autocast: weights, losses and optimiser stay float32. "auto" takes it where the device has it.
    n_watched : int
        Samples whose embedding statistics are recorded after each epoch; 0 records none and cannot see a collapse.
    seed : int
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
        """Raise ValueError where a setting cannot be trained with."""
        check_choice("objective", self.objective, OBJECTIVES)
        if self.projector_objective is not None:
            check_choice("projector_objective", self.projector_objective, OBJECTIVES)
        check_choice("precision", self.precision, PRECISIONS)
        for name in (self.objective, self.projector_objective):
            if name in ("vicreg", "info_nce") and self.n_views != 2:
                raise ValueError(f"{name} compares two views, got n_views={self.n_views}")
        if self.n_views < 2:
            raise ValueError(f"n_views must be at least 2, got {self.n_views}")
        if not 0 <= self.full_size_share <= self.decay <= 1:
            raise ValueError(f"0 <= full_size_share <= decay <= 1, got {self.full_size_share} and {self.decay}")
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 2 <= self.batch_size <= n_samples:
            raise ValueError(f"batch_size must lie in [2, {n_samples}] (the number of samples), got {self.batch_size}")

    @property
    def decay_start(self) -> float:
        """Epochs after which the learning rate falls."""
        return self.epochs * (1 - self.decay)

    def learning_rate_at(self, epochs_done: float) -> float:
        """Learning rate after so many epochs, whole or not: a trapezium."""
        rise = (epochs_done + 0.01) / (self.warmup + 0.01)  # the first step should move too
        fall = (self.epochs - epochs_done) / max(self.epochs - self.decay_start, 1e-9)
        return self.learning_rate * min(1.0, rise, fall)
