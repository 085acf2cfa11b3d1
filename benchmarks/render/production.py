"""Tables of docs/guide/production.md, from benchmarks/results/one_picture_cpu.json and exported_cpu.json."""

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown


def one_picture_table() -> str:
    rows = [
        [
            name,
            f"{found['parameters'] / 1e6:.1f}",
            f"{found['bare_ms']:.1f}",
            f"{found['predict_ms']:.1f}",
            f"{found['ratio']:.2f}",
            "yes" if found["aim_is_met"] else "no",
            f"{found['steady_ms']:.1f}",
            "yes" if found["aim_is_met_steady"] else "no",
        ]
        for name, found in read("one_picture_cpu")["encoders"].items()
    ]
    heading = ["encoder", "parameters, 10^6", "bare pass, ms", "`predict`, ms", "ratio", "aim met"]
    heading += ["in `steady`, ms", "aim met"]
    return markdown([heading, *rows])


def one_picture_line() -> str:
    stamp = read("one_picture_cpu")["stamp"]
    threads = stamp["threads"]
    clock = stamp.get("clock", "wall time")
    of = f"{clock}, {threads} thread{'s' if threads > 1 else ''}"
    return f"Medians of {stamp['rounds']} rounds on a CPU, {of}, in one run."


def exported_table() -> str:
    rows = [
        [
            name,
            f"{found['megabytes']:.1f}",
            f"{found['largest_relative_difference']:.1e}",
            f"{found['share_within_1e-5']:.0%}",
            f"{found['largest_relative_difference_of_torch']:.1e}",
            f"{found['torch_from_float64']:.1e}",
            f"{found['onnx_from_float64']:.1e}",
            *(f"{found[f'torch_ms_of_{n}'] / found[f'onnx_ms_of_{n}']:.1f}" for n in (1, 32)),
        ]
        for name, found in read("exported_cpu")["encoders"].items()
    ]
    heading = ["encoder", "MB", "difference of scores", "within 1e-5", "of torch with itself", "torch from float64"]
    heading += ["the file from float64", "faster, one", "faster, 32 at a time"]
    return markdown([heading, *rows])


def exported_line() -> str:
    found = read("exported_cpu")
    opsets = " and ".join(sorted({str(encoder["opset"]) for encoder in found["encoders"].values()}))
    n_different = sum(encoder["different_labels"] for encoder in found["encoders"].values())
    n_samples = 100 * len(found["encoders"])
    return f"Opset {opsets}. Of {n_samples} labels {n_different or 'none'} differ{'s' if n_different == 1 else ''}."


PRODUCTION = {
    "one-picture": one_picture_table,
    "one-picture-run": one_picture_line,
    "exported": exported_table,
    "exported-run": exported_line,
}
