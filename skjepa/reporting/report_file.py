"""Write a report for readers: which samples are anomalous, by which threshold, and whether the encoder is sound."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from skjepa._utils.files import check_output, written_whole
from skjepa._utils.validation import check_integer
from skjepa.data.images import as_picture
from skjepa.data.near_duplicates import Look, alike, is_alike, look_of
from skjepa.data.one_picture import listed
from skjepa.data.sources import Source, as_source, folder_source
from skjepa.extraction.encoder_pass import embed
from skjepa.extraction.extraction import Extraction
from skjepa.reporting.about import about_detector
from skjepa.reporting.from_table import results_of_table
from skjepa.reporting.neighbours import Surroundings, has_umap
from skjepa.reporting.page import IN_TABLE, render
from skjepa.reporting.results import Map, Results
from skjepa.reporting.scored_groups import aligned_reasons

_UNREADABLE = (OSError, ValueError, RuntimeError)

Picture = Callable[[Any], Image.Image | None]


def report(
    detector: Any,
    X: Any,
    path: str | os.PathLike,
    *,
    normal: Any = None,
    images: Any = None,
    title: str = "Anomaly report",
    gallery: int = 24,
    duplicates: bool = True,
    store: str | os.PathLike | None = None,
) -> Path:
    """Score samples and write the results as one HTML file that works without a network or other files.

    The page holds summary and threshold in words, a histogram, galleries of the most atypical, the borderline and the
    most typical samples, a map of the embeddings, a diagnosis of the encoder, near-duplicates, and a table to search
    and sort. The map shows principal axes, and UMAP as well where umap-learn is installed. With a detector that was
    fitted with ``local=True``, the most atypical images show where they are anomalous.

    Parameters
    ----------
    detector : fitted detector
        A `JEPAScoreDetector`. With other detectors the page has no map and no diagnosis.
    X : images, vectors or Extraction
        Samples to score. For vectors the page has no pictures.
    path : path-like
        File to write, which must end in ``.html``.
    normal : images, vectors or Extraction, optional
        Normal samples for neighbours and map; each takes one forward pass. By default the map shows the embeddings of
        the fit samples that the detector keeps, and no neighbours are named.
    images : images, optional
        Pictures of the samples, where X is an Extraction.
    title : str
    gallery : int
        Largest number of images in each gallery.
    duplicates : bool
        Whether to search for near-duplicate images, for which each image is read once more.
    store : path, optional
        Folder that keeps finished samples, see `JEPAScoreDetector.extract`.

    Returns
    -------
    Path
        The file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from skjepa import JEPAScoreDetector, report
    >>> rng = np.random.default_rng(0)
    >>> normal, new = rng.integers(100, 156, size=(2, 30, 32, 32, 3), dtype=np.uint8)
    >>> detector = JEPAScoreDetector().fit(normal)
    >>> with TemporaryDirectory() as folder:
    ...     "<h1>Anomaly report</h1>" in report(detector, new, f"{folder}/report.html", normal=normal).read_text()
    True
    """
    path = check_output(path, (".html", ".htm"))
    X = listed(X)  # it is read twice
    source = None if isinstance(X, Extraction) else as_source(X)
    measured = _measured(detector, X, store)
    judged = detector.judge(X if measured is None else measured)
    scores, p_values, reasons = judged.scores, judged.p_values, judged.unusual_terms
    if measured is not None and source is not None:
        scores, p_values = measured.aligned(scores), None if p_values is None else measured.aligned(p_values)
        reasons = aligned_reasons(reasons, measured)
    ids = X.ids if source is None else source.ids
    normal_source = None if normal is None or isinstance(normal, Extraction) else as_source(normal)
    if normal is not None and getattr(detector, "tiles", None) is not None:
        warnings.warn("normal= is not used: with tiles an image has no embedding to find neighbours of", stacklevel=2)
    surroundings = None if measured is None else _surroundings(detector, normal, normal_source)
    if measured is None:
        z = np.full((len(ids), 1), np.nan)
    else:  # an Extraction shows the samples that it holds, and not those it skipped
        z = measured.embeddings if source is None else measured.aligned(measured.embeddings)
    results = Results(
        ids=ids,
        scores=scores,
        flagged=~(scores >= detector.offset_),
        p_values=p_values,
        threshold=float(detector.offset_),
        errors=dict.fromkeys(np.flatnonzero(np.isnan(scores)).tolist(), "could not be read")
        | ({} if measured is None or source is None else measured.errors),
        image=_pictures(source if images is None else as_source(images), len(ids)),
        normal_image=_by_name(normal_source),
        reasons=reasons if hasattr(detector, "explain") else None,
        nearest=None if surroundings is None or surroundings.ids is None else surroundings.nearest(z),
        maps=[] if surroundings is None else _maps(surroundings, z),
        about=about_detector(detector),
    )
    if source is not None:
        results = _with_maps(results, detector, source, gallery)
    return write_report(results, path, title=title, gallery=gallery, duplicates=duplicates)


def report_of_table(
    table: str | os.PathLike,
    path: str | os.PathLike,
    *,
    images: Sequence[str | os.PathLike] = (),
    normal: str | os.PathLike | None = None,
    detector: Any = None,
    title: str | None = None,
    gallery: int = 24,
    duplicates: bool = True,
    progress: bool = False,
) -> Path:
    """Write the page of `report` from a table of `skjepa score` or `skjepa prune --scores`, without scoring again.

    Parameters
    ----------
    table : path-like
        A ``.parquet`` table, which holds the folders of the images, their neighbours, the map and the diagnosis, or a
        ``.csv`` table, which holds scores and decisions alone.
    path : path-like
        File to write, which must end in ``.html``.
    images : sequence of folders, optional
        Current folders of the images, in the order in which they were scored; by default the folders in the table.
    normal : folder, optional
        Current folder of the normal images; by default the folder in the table.
    detector : JEPAScoreDetector, optional
        The fitted detector, which adds neighbours, maps and diagnosis where the table has none. It takes one forward
        pass per image.
    title, gallery, duplicates
        As for `report`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Path
        The file.
    """
    table, path = Path(table), check_output(path, (".html", ".htm"))
    results = results_of_table(table, images=images, normal=normal)
    if detector is not None:
        results = _looked_up(results, detector, normal, progress, gallery)
    return write_report(
        results,
        path,
        title=title or f"Anomaly report: {table.stem}",
        gallery=gallery,
        duplicates=duplicates,
        progress=progress,
    )


def write_report(
    results: Results,
    path: Path,
    *,
    title: str,
    gallery: int = 24,
    duplicates: bool = True,
    thumbnails: int = IN_TABLE,
    progress: bool = False,
) -> Path:
    """Render results and write the page, whole or not at all."""
    check_integer("gallery", gallery, minimum=1)
    looks = _looks(results, progress) if duplicates else []
    groups = alike(looks) if any(look is not None for look in looks) else None
    known = _known(results, looks)
    page = render(results, title=title, groups=groups, known=known, gallery=gallery, thumbnails=thumbnails)
    with written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


def _looked_up(results: Results, detector: Any, normal: Any, progress: bool, gallery: int) -> Results:
    """Add neighbours, maps and diagnosis from the detector."""

    def load(i: int) -> Image.Image:
        image = results.image(i)
        if image is None:
            raise FileNotFoundError(f"the folder of {results.ids[i]} is not known: give images=")
        return image

    folder = results.about.normal_folder if normal is None else os.fspath(normal)
    normal_source = folder_source(folder) if folder else None
    everyone = Source(results.ids, load)
    results = _with_maps(results, detector, everyone, gallery)
    z = embed(detector.fitted_encoder(everyone), everyone, device=detector.device, on_error="skip", progress=progress)
    surroundings = _surroundings(detector, normal_source, normal_source)
    about = about_detector(detector, folders=results.about.folders, normal_folder=folder or "")
    if surroundings is None:
        return replace(results, about=about)
    nearest = None if surroundings.ids is None else surroundings.nearest(z)
    return replace(results, nearest=nearest, maps=_maps(surroundings, z), about=about)


def _with_maps(results: Results, detector: Any, source: Source, gallery: int) -> Results:
    """Add pictures that show where the most atypical images are anomalous, where the detector has a local model."""
    if source.is_vector or not getattr(detector, "local", False):
        return results
    places = results.ranked[:gallery]
    found = zip(places.tolist(), detector.picture_maps(source[places]), strict=True)
    shown = {i: own.overlay(source.load(i), legend=False) for i, own in found if own is not None}
    return replace(results, map_picture=shown.get)


def _measured(detector: Any, X: Any, store: Any) -> Extraction | None:
    """Return the extraction of X; None where each model makes its own, or the detector makes none."""
    if isinstance(X, Extraction):
        return X
    if not hasattr(detector, "extract") or detector.needs_samples:
        return None
    return detector.extract(X, store=store)


def _surroundings(detector: Any, normal: Any, source: Source | None) -> Surroundings | None:
    """Return the given normal samples, or the fit samples that the detector keeps, which have no names.

    With tiles these are tiles, and no image is shown among them.
    """
    if isinstance(normal, Extraction):
        return Surroundings(normal.embeddings, normal.ids)
    if source is not None:
        encoder = detector.fitted_encoder(source)
        return Surroundings(embed(encoder, source, device=detector.device, on_error="skip"), source.ids)
    seen = detector.model_.seen
    return None if seen is None or getattr(detector, "tiles", None) is not None else Surroundings(seen.embeddings)


def _maps(surroundings: Surroundings, z: NDArray[np.float64]) -> list[Map]:
    maps = [Map("principal axes", *surroundings.pca(z))]
    if has_umap() and len(z) + len(surroundings.embeddings) > 15:
        maps.append(Map("UMAP", *surroundings.umap(z)))
    return maps


def _pictures(source: Source | None, n: int) -> Picture:
    if source is not None and len(source) != n:
        raise ValueError(f"images must hold one image per sample: there are {n} samples, {len(source)} images")
    if source is None or source.is_vector:
        return lambda i: None
    return lambda i: as_picture(source.load(i)).convert("RGB")


def _by_name(source: Source | None) -> Picture:
    if source is None or source.is_vector:
        return lambda name: None
    places = {str(name): i for i, name in enumerate(source.ids)}
    return lambda name: as_picture(source.load(places[name])).convert("RGB") if name in places else None


def _looks(results: Results, progress: bool) -> list[Look | None]:
    """Return the look of every image, read by several threads."""

    def look(i: int) -> Look | None:
        return _look(lambda: results.image(i)) if results.readable[i] else None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        places = range(len(results))
        read = threads.map(look, places)
        return list(tqdm(read, total=len(places), desc="near-duplicates", unit="img", disable=not progress))


def _look(load: Callable[[], Image.Image | None]) -> Look | None:
    """Return the look of an image; None where there is no image or it cannot be read."""
    try:
        image = load()
        return None if image is None else look_of(image)
    except _UNREADABLE:
        return None


def _known(results: Results, looks: Sequence[Look | None]) -> list[tuple[int, str]]:
    """Return the positions of samples that look like their nearest normal image, with the name of that image."""
    found, of_normal = [], cache(lambda name: _look(lambda: results.normal_image(name)))
    for i, look in enumerate(looks if results.nearest else ()):
        name = next(iter(results.nearest[i] if results.nearest else ()), None)
        twin = None if look is None or name is None else of_normal(name)
        if look is not None and name is not None and twin is not None and is_alike(look, twin):
            found.append((i, name))
    return found
