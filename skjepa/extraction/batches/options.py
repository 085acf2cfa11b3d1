"""How a pass over data runs: `RunOptions`, checked once and handed on whole."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from skjepa._utils.validation import check_choice, check_integer


@dataclass(frozen=True)
class RunOptions:
    """Where and how a pass runs; none of it changes a number that the pass yields.

    Attributes
    ----------
    device : str
        "auto" takes CUDA where there is one; resolved where the pass runs, which may be another machine.
    memory_budget : int, optional
        Bytes that a batch may take; by default half of the free memory.
    n_jobs : int, optional
        Threads that read samples, in each process; -1 for one a core.
    on_error : {"raise", "skip"}
        Whether a sample that cannot be read is an error, or a warning that names it.
    progress : bool
        Whether a bar is shown.

    Raises
    ------
    ValueError, TypeError
        A value that is not allowed; names the option.
    """

    device: str = "auto"
    memory_budget: int | None = None
    n_jobs: int | None = None
    on_error: str = "raise"
    progress: bool = False

    def __post_init__(self) -> None:
        check_choice("on_error", self.on_error, ("raise", "skip"))
        if self.memory_budget is not None:
            check_integer("memory_budget", self.memory_budget, minimum=1)
        if self.n_jobs not in (None, -1):
            check_integer("n_jobs", self.n_jobs, minimum=1)

    @classmethod
    def of(cls, estimator: Any, **changed: Any) -> "RunOptions":
        """The options that an estimator has as parameters (`verbose` for `progress`), but for those `changed`."""
        own = {name: getattr(estimator, name) for name in ("device", "memory_budget", "n_jobs", "on_error")}
        return cls(**{**own, "progress": estimator.verbose > 0, **changed})

    @property
    def reading_threads(self) -> int:
        """How many threads `n_jobs` stands for."""
        return {None: 1, -1: os.cpu_count() or 1}.get(self.n_jobs) or int(self.n_jobs or 1)

    @property
    def parameters(self) -> dict[str, Any]:
        """As parameters of a detector or transformer."""
        own = asdict(self)
        return {"verbose": int(own.pop("progress")), **own}

    @property
    def keywords(self) -> dict[str, Any]:
        """As keyword arguments of `skjepa.extract` and `skjepa.embed`."""
        return asdict(self)
