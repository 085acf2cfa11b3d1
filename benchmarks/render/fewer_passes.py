"""Tables of docs/results/fewer-passes.md: what layers add to few passes, and a cascade of passes."""

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown

WAYS = {
    "sketch": "the sketch alone",
    "control variate": "control variate",
    "layers added": "one regression on all",
    "half": "mean of the sketch alone and of one on all",
    "layers alone": "layers and z, no directions",
}


def activations(name: str = "activations") -> str:
    """By m and way: errors and ranks of the log-volume, changes of AUROC."""
    rows = [
        ["m", "from", "nats, out of fold", "nats", "Spearman", "nats, foreign", "AUROC, JEPA-SCORE", "AUROC, default"]
    ]
    for row in read(name)["curve"]:
        normal = row["normal"]
        told = [f"{normal['error']:.2f}", f"{normal['spearman']:.3f}", _worst(row["error"], 2)]
        told += [_worst(row[f"{score} change"], 3) for score in ("jepa", "joint")]
        rows.append([str(row["m"]), WAYS[row["way"]], f"{row['out_of_fold']['mean']:.2f}", *told])
    return markdown(rows)


def cascade() -> str:
    """By formula and way: passes and decisions that are the exact detector's, of normal and foreign images."""
    rows = [
        [
            "formula",
            "way",
            "passes",
            "decisions kept",
            "flagged",
            "passes, foreign",
            "decisions kept",
            "flagged",
            "AUROC",
        ]
    ]
    for row in read("cascade")["curve"]:
        normal, foreign = row["normal"], row["foreign"]
        kept = f"{foreign['agreement']:.3f} ({row['worst_foreign']['agreement']:.3f})"
        told = [f"{normal['passes']:.1f}", f"{normal['agreement']:.3f}", f"{normal['flagged']:.3f}"]
        told += [f"{foreign['passes']:.1f}", kept, f"{foreign['flagged']:.3f}", f"{foreign['auroc']:.3f}"]
        rows.append([row["formula"], row["way"], *told])
    return markdown(rows)


def _worst(values: dict, digits: int) -> str:
    return f"{values['mean']:.{digits}f} ({values['worst']:.{digits}f})"


TABLES = {"activations": activations, "cascade": cascade}
