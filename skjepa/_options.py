"""Options that several commands have, each said once."""

from typing import Annotated

import typer

Processes = Annotated[
    int | None, typer.Option(help="Processes that score, no more than GPUs where there are any; -1: one a core.")
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="SCHEDULER", help="Score on a dask cluster: its address, or scheduler file.")
]
ReadThreads = Annotated[int | None, typer.Option(help="Threads that read images, in each process.")]
