"""The table of docs/guide/beyond-images.md; `python -m benchmarks.render` puts it in its place."""

from statistics import mean, stdev

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown

NAMES = {"text_off_topic": "sentences off topic", "time_series": "voices of strangers"}


def beyond_table() -> str:
    """Mean and standard deviation of the AUROC over splits."""
    examples = read("beyond_images")["examples"]
    detectors = next(iter(examples.values()))["auroc"]
    rows = []
    for detector in detectors:
        values = [examples[name]["auroc"][detector] for name in NAMES]
        rows.append([detector, *(f"{mean(runs):.3f} ± {stdev(runs):.3f}" for runs in values)])
    return markdown([["AUROC", *NAMES.values()], *rows])


BEYOND_IMAGES = {"beyond": beyond_table}
