"""Find and print the most atypical images of a run, with reasons and the next command to type."""

import heapq
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from PIL.Image import Image

    from skjepa.data.sources import Source
    from skjepa.inspection.appearance import NormalAppearance, Remark
    from skjepa.reporting.scored_groups import ScoredGroup

SHOWN = 10
NO_REASON = "no single measurement is unusual, but their sum is"
_REASONS = 3


def most_atypical(
    groups: Sequence["ScoredGroup"], appearance: "NormalAppearance | None", n: int = SHOWN
) -> list[dict[str, Any]]:
    """Return the `n` readable images with the lowest p-values and scores, the most atypical first.

    Returns
    -------
    list of dict
        group, id (as in the table), score, p_value or None, flagged, and reasons (list of str).
    """
    from skjepa.inspection.plain_words import reasons_in_words

    scored = [
        (0.0 if group.p_values is None else float(group.p_values[i]), float(score), group, i)
        for group in groups
        for i, score in enumerate(group.scores)
        if score == score  # NaN: could not be read
    ]
    rows = []
    for p_value, score, group, i in heapq.nsmallest(n, scored, key=lambda found: found[:2]):
        remarks = remarks_on(group.source, i, appearance)
        row = group.row_of_explained(i)
        reasons = [] if row is None else reasons_in_words(group.explained, row, remarks)  # type: ignore[arg-type]
        rows.append(
            {
                "group": group.name,
                "id": f"{group.name}/{group.source.ids[i]}" if len(groups) > 1 else str(group.source.ids[i]),
                "score": score,
                "p_value": None if group.p_values is None else p_value,
                "flagged": bool(group.decisions[i] < 0),
                "reasons": [reason.words for reason in reasons],
            }
        )
    return rows


def remarks_on(source: "Source", i: int, appearance: "NormalAppearance | None") -> list["Remark"]:
    """Return how an image looks different from every normal image; empty if it cannot be read again."""
    from skjepa.data.images import as_picture

    if appearance is None:
        return []
    try:
        image: Image = as_picture(source.load(i)).convert("RGB")
    except (OSError, ValueError):
        return []
    return appearance.remarks(image)


def print_atypical(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table: image, p-value, whether it is flagged, and at most three reasons."""
    n_flagged = sum(row["flagged"] for row in rows)
    title = "The most atypical image" + ("" if len(rows) == 1 else f"s, {len(rows)} of them")
    table = Table(
        title=f"{title} ({'all' if n_flagged == len(rows) else n_flagged or 'none'} flagged)",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    has_p = any(row["p_value"] is not None for row in rows)
    table.add_column("", no_wrap=True)
    table.add_column("image", overflow="fold", ratio=2)
    table.add_column("p-value" if has_p else "score", justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", ratio=5)
    for row in rows:
        value = f"{row['p_value']:.3g}" if has_p else f"{row['score']:.4g}"
        reasons = "; ".join(row["reasons"][:_REASONS]) or (NO_REASON if row["flagged"] else "nothing unusual")
        table.add_row("!" if row["flagged"] else "", escape(row["id"]), value, escape(reasons))
    console.print(table)


def report_command(table: Path, folders: Sequence[Path]) -> str:
    """Return the command that makes a page from a table of scores; a CSV table needs the image folders as well."""
    images = [part for folder in folders for part in ("--images", str(folder))] if table.suffix == ".csv" else []
    return shlex.join(["skjepa", "report", str(table), *images])
