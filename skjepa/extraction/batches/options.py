"""`RunOptions`: the options of how a run executes, checked once."""

import os
from dataclasses import asdict, dataclass
from typing import Any

from skjepa._utils.progress import AUTO, check_progress
from skjepa._utils.validation import check_choice, check_integer


@dataclass(frozen=True)
class RunOptions:
    """Hold the options of where and how a run executes; none of them changes its results.

    Attributes
    ----------
    device : str
        "auto" takes CUDA if there is one. It is resolved where the run executes, which may be another machine.
    memory_budget : int, optional
        Bytes that a batch may take; by default half of the free memory.
    n_jobs : int, optional
        Number of threads that read samples in each process; -1 for one per core.
    on_error : {"raise", "skip"}
        Whether a sample that cannot be read raises an error, or gives a warning that names it.
    progress : bool or "auto"
        Whether a bar is shown; "auto" shows one in a terminal or a notebook, after two seconds.

    Raises
    ------
    ValueError, TypeError
        If a value is not allowed; the message names the option.
    """

    device: str = "auto"
    memory_budget: int | None = None
    n_jobs: int | None = None
    on_error: str = "raise"
    progress: bool | str = False

    def __post_init__(self) -> None:
        check_progress("progress", self.progress)
        check_choice("on_error", self.on_error, ("raise", "skip"))
        if self.memory_budget is not None:
            check_integer("memory_budget", self.memory_budget, minimum=1)
        if self.n_jobs not in (None, -1):
            check_integer("n_jobs", self.n_jobs, minimum=1)

    @classmethod
    def of(cls, estimator: Any, **changed: Any) -> "RunOptions":
        """Return the options from the parameters of an estimator (`verbose` for `progress`), except `changed` ones."""
        own = {name: getattr(estimator, name) for name in ("device", "memory_budget", "n_jobs", "on_error")}
        verbose = estimator.verbose
        check_progress("verbose", verbose)
        return cls(**{**own, "progress": verbose if verbose == AUTO else verbose > 0, **changed})

    @property
    def reading_threads(self) -> int:
        """Number of threads that `n_jobs` stands for."""
        return {None: 1, -1: os.cpu_count() or 1}.get(self.n_jobs) or int(self.n_jobs or 1)

    @property
    def parameters(self) -> dict[str, Any]:
        """The options as parameters of a detector or transformer."""
        own = asdict(self)
        progress = own.pop("progress")
        return {"verbose": progress if progress == AUTO else int(progress), **own}

    @property
    def keywords(self) -> dict[str, Any]:
        """The options as keyword arguments of `skjepa.extract` and `skjepa.embed`."""
        return asdict(self)
