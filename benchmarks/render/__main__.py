"""Write the tables of README and docs from the JSON files that the scripts of this repository measured.

    python -m benchmarks.render            # rewrite the tables
    python -m benchmarks.render --demo     # run the demo first, and keep its summary and picture

A table stands between `<!-- name -->` and `<!-- /name -->`.
"""

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

from benchmarks.common.markdown import number, read
from benchmarks.common.record import IMAGES, RESULTS
from benchmarks.render import (
    benchmark,
    beyond_images,
    cost,
    curation,
    engine,
    explain,
    fewer_passes,
    forward,
    gpu,
    local_defects,
    passes,
    production,
    readme,
    reliability,
    scaling,
    streams,
    theory,
    vectors,
)
from skjepa.evaluation.benchmark_result import markdown

ROOT = Path(__file__).resolve().parents[2]
PICTURES = {"odd.png": "demo.png", "scores.png": "demo-scores.png"}
AUROC_OF_PASSES = ROOT / "skjepa" / "cli" / "value_of_passes.json"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--demo", action="store_true")
    if options.parse_args().demo:
        keep_demo()
    AUROC_OF_PASSES.write_text(json.dumps(passes.of_the_command_line(), indent=1) + "\n")
    for document, tables in TABLES.items():
        path = ROOT / document
        path.write_text(rendered(path.read_text(), {name: table() for name, table in tables.items()}))


def keep_demo() -> None:
    from rich.console import Console

    from skjepa.cli.demo import run_demo

    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder), seed=0, console=Console())
        for written, kept in PICTURES.items():
            shutil.copy(Path(folder) / written, IMAGES / kept)
        shutil.copy(Path(folder) / "summary.json", RESULTS / "demo.json")


def rendered(text: str, tables: dict[str, str]) -> str:
    """The document with each table in its place; raises ValueError where a place is missing."""
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"no place for the table {name!r}")
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


JOINT_FORMS = {
    "standardised, k = 10": "equal weights, distance to the tenth neighbour",
    "standardised, mean of 20": "equal weights, mean distance to twenty neighbours",
    "standardised, halves, kernels": "line 1 alone, three terms: s, log q(z), log q(s given z)",
    "standardised with formula, halves, kernels": "lines 1 to 3, three terms",
    "standardised with formula, halves, mean of 20": "the same, mean distance to twenty neighbours for the kernels",
    "standardised with formula, halves, kernels, spectrum": "lines 1 to 3, without log q(z / norm z)",
    "standardised with formula, halves, kernels, spectrum, direction, root of the share filled": "the default",
    "standardised with formula, halves, kernels, spectrum, direction, as far as filled": "the same with s and c d / R",
    "standardised with formula, halves, kernels, spectrum, direction": "the same with s and c",
    "standardised with formula, halves, kernels, spectrum, direction counting one": "log q(z / norm z) counting one",
    "standardised with formula, halves, kernels, spectrum, direction, Gaussian of z": "a Gaussian for the kernels",
    "log p of standardised with formula, halves, kernels, spectrum, direction": "tail probabilities for deviations",
    "formula in nats, kernels": "s + log q(z), kernels",
    "log-volume": "s",
    "log q(sigma | z)": "log q(sigma given z)",
    "log q(z), kernels": "log q(z), kernels",
    "log q(z), k = 10": "-d log r, r the distance to the tenth neighbour of z",
    "log q(z), gaussian": "Gaussian of z (Mahalanobis)",
    "log q(z), direction": "Gaussian of z / norm z (Mahalanobis++)",
}


def joint_forms_table() -> str:
    halves = read("joint_forms")["mean"]
    groups = {
        "tables, semi-supervised": "tables, semi-supervised",
        "tables, unsupervised": "unsupervised",
        "known densities, Spearman": "known densities",
        "images, head": "images",
        "all": "all ten groups",
    }
    rows = [
        [name, *(" / ".join(number(halves[half][group][form]) for half in ("tune", "confirm")) for group in groups)]
        for form, name in JOINT_FORMS.items()
    ]
    return markdown([["chosen on / looked at", *groups.values()], *rows])


def contamination_table() -> str:
    found = read("joint_forms")["flagged"]
    rows = [[group, f"{shares['new normal']:.0%}"] for group, shares in found.items()]
    return markdown([["new normal samples flagged at contamination=0.1", "share"], *rows])


def complexity_table() -> str:
    found = read("foreign_sets")["spearman_with_bits_per_pixel"]
    rows = [[name.replace("cifar10/test", "CIFAR-10"), number(value, 2)] for name, value in found.items()]
    return markdown([["Spearman with bits per pixel", "JEPA-SCORE"], *rows])


def trials_table() -> str:
    rows = [
        [
            name,
            number(measured["knn_20"]),
            number(measured["linear_probe"]),
            f"{measured['participation_ratio']:.1f} of {measured['n_components']}",
            number(measured["jepa_score_auroc"]),
        ]
        for name, measured in read("encoder_trials")["trials"].items()
    ]
    return markdown([["change", "20-NN", "linear probe", "participation ratio", "JEPA-SCORE"], *rows])


TABLES = {
    "README.md": {"demo": readme.demo_table, "rivals": readme.rivals_table},
    "skjepa/encoders/bundled/MODEL_CARD.md": {"trials": trials_table},
    "docs/guide/baselines.md": {"complexity": complexity_table},
    "docs/results/benchmark.md": {**benchmark.BENCHMARK, "foreign": readme.foreign_table},
    "docs/guide/beyond-images.md": beyond_images.BEYOND_IMAGES,
    "docs/guide/cost.md": cost.COST,
    "docs/guide/curation.md": curation.CURATION,
    "docs/guide/explain.md": explain.EXPLAIN,
    "docs/guide/local-defects.md": local_defects.LOCAL_DEFECTS,
    "docs/results/fewer-passes.md": cost.FEWER_PASSES | fewer_passes.TABLES,
    "docs/results/passes.md": passes.PAGE,
    "docs/results/one-class.md": curation.ONE_CLASS,
    "docs/results/precision.md": cost.PRECISION,
    "docs/guide/production.md": production.PRODUCTION,
    "docs/guide/reliability.md": reliability.RELIABILITY,
    "docs/guide/scaling.md": scaling.SCALING,
    "docs/guide/scores.md": {"joint-forms": joint_forms_table, **passes.SCORES},
    "docs/results/speed.md": cost.SPEED | engine.ENGINE | forward.FORWARD | gpu.GPU,
    "docs/guide/streams.md": streams.STREAMS,
    "docs/guide/thresholds.md": {"thresholds-contamination": contamination_table},
    "docs/guide/vectors.md": vectors.VECTORS,
    "docs/theory/convergence.md": theory.CONVERGENCE,
    "docs/theory/dimension.md": theory.DIMENSION,
    "docs/theory/failures.md": theory.FAILURES,
    "docs/theory/known-density.md": theory.KNOWN_DENSITY,
    "docs/theory/objectives.md": theory.OBJECTIVES,
    "docs/theory/views.md": theory.VIEWS,
}
"""Every page that has tables of measured figures, and what stands in its places."""


if __name__ == "__main__":
    main()
