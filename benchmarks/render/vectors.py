"""What benchmarks/accuracy/tables.py measured, as tables of docs/guide/vectors.md and docs/results/benchmark.md."""

import numpy as np

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown

TIE = 0.01  # AUROC on one set
HALVES = ("tuned", "confirmed")
PARTS = {"all": "all sets", "tuned": "tuned", "confirmed": "confirmed", "all finished": "where all finished"}


def found() -> dict:
    return read("tables")


def run_line() -> str:
    """What was run, so that nobody takes a quick run for a full one."""
    tables = found()
    stamp = tables["stamp"]
    seeds = "one seed" if stamp["seeds"] == 1 else f"means over {stamp['seeds']} seeds"
    return (
        f"{'A quick run' if stamp['quick'] else 'The run'} of {stamp['date'][:10]}: {len(tables['sets'])} sets, "
        f"{seeds}, at most {stamp['max_rows']:,} rows per set, at most {stamp['limit_seconds']:g} seconds per fit."
    )


def bar_table() -> str:
    """The default against the best of PyOD's, by protocol and part."""
    tables = found()
    rows = [["target", "sets", "mean AUROC", "best rival", "", "mean rank", "best rival", ""]]
    for protocol, parts in tables["verdicts"].items():
        for part in (part for part in PARTS if part in parts):
            own = parts[part]
            auroc, rank = own["bar"]["best mean AUROC"], own["bar"]["best mean rank"]
            rows.append(
                [
                    f"{protocol}, {PARTS[part]}",
                    str(own["sets"]),
                    f"{auroc['measured']:.3f}",
                    f"{auroc['best_of_rivals']:.3f} ({auroc['best_rival']})",
                    verdict(auroc["met"]),
                    f"{rank['measured']:.2f}",
                    f"{rank['best_of_rivals']:.2f} ({rank['best_rival']})",
                    verdict(rank["met"]),
                ]
            )
    return markdown(rows)


def protocol_table(protocol: str) -> str:
    """Everyone's means, ranks and seconds under one protocol, and the default against each rival."""
    tables = found()
    parts = tables["verdicts"][protocol]
    whole, default = parts["all"], tables["default"]
    tests = {test["rival"]: test for test in whole["tests"]}
    kinds = ["all", *HALVES]
    heading = [
        protocol, *(f"AUROC, {part}" for part in kinds), "AUPR-out", *(f"rank, {part}" for part in kinds),
        f"{default} ahead by", "wins / ties / losses", "p (Holm)", "seconds",
    ]  # fmt: skip
    rows = [heading]
    for name in by_rank(tables):
        own = [parts[part]["detectors"][name] for part in kinds]
        best = max(parts["all"]["detectors"][rival]["mean_auroc"] for rival in tables["listed"])
        means = [f"{row['mean_auroc']:.3f}" for row in own]
        if own[0]["mean_auroc"] == best:
            means[0] = f"**{means[0]}**"
        ranks = [f"{row['mean_rank']:.2f}" if "mean_rank" in row else "" for row in own]
        aupr = f"{own[0]['mean_aupr_out']:.3f}"
        rows.append([name, *means, aupr, *ranks, *test_cells(tests.get(name)), f"{own[0]['mean_seconds']:.2g}"])
    blank = [""] * 4
    limits = [f"{parts[part]['critical_difference']:.2f}" for part in kinds]
    friedman = [p_cell(parts[part]["friedman_p_value"]) for part in kinds]
    rows.append(["critical difference of ranks", *blank, *limits, *blank])
    rows.append(["Friedman's test, p", *blank, *friedman, *blank])
    return markdown(rows)


def by_set_table() -> str:
    """Set by set: the default, KNN, and whoever of PyOD's is the best there."""
    tables = found()
    protocols = list(tables["verdicts"])
    heading = ["set", "rows", "features", "outliers"]
    rows = [[*heading, *(f"{p}: {who}" for p in protocols for who in (tables["default"], "KNN", "best rival")), "half"]]
    for name, own in tables["sets"].items():
        cells = [name, str(own["n_samples"]), str(own["n_features"]), str(own["outliers"])]
        for protocol in protocols:
            auroc = {rival: own[protocol][rival]["auroc"] for rival in tables["listed"] if rival != tables["default"]}
            best = max(auroc, key=lambda rival: auroc[rival])
            ours = own[protocol][tables["default"]]["auroc"]
            cells += [f"{ours:.3f}", f"{auroc['KNN']:.3f}", f"{auroc[best]:.3f} ({best})"]
        rows.append([*cells, own["half"]])
    return markdown(rows)


def verdict_list() -> str:
    """Where the default wins, ties and loses against KNN, and against the best rival of each set."""
    tables = found()
    lines = []
    for protocol in tables["verdicts"]:
        for who in ("KNN", "the best of the seven on each set"):
            gaps = {name: gap(own[protocol], tables, who) for name, own in tables["sets"].items()}
            kinds = {
                "wins": [n for n, g in gaps.items() if g > TIE],
                "ties": [n for n, g in gaps.items() if abs(g) <= TIE],
                "loses": [n for n, g in gaps.items() if g < -TIE],
            }
            told = "; ".join(
                f"{kind} {len(names)}" + (f" ({', '.join(f'{n} {gaps[n]:+.3f}' for n in names)})" if names else "")
                for kind, names in kinds.items()
            )
            lines.append(f"- **{protocol}, against {who}**: {told}.")
    return "\n".join(lines)


def failures_list() -> str:
    """Who gave no scores where, and who warned."""
    tables = found()
    seeds = tables["stamp"]["seeds"]
    lines = [
        f"- {note['rival']} failed on {note['set']}, {note['protocol']}, with {note['seeds']} of {seeds} seeds: "
        f"{note['first']}."
        for note in tables["failed"]
    ]
    warned: dict[tuple[str, str], list[str]] = {}
    for note in tables["warned"]:
        for message in note["first"]:
            warned.setdefault((note["rival"], message), []).append(note["set"])
    lines += [
        f'- {rival} warned "{message}" on {", ".join(dict.fromkeys(sets))}; its scores count.'
        for (rival, message), sets in warned.items()
    ]
    return "\n".join(lines) or "- Nobody failed or warned."


def ranks_table() -> str:
    """Those that are ranked, in short."""
    tables = found()
    protocols = tables["verdicts"]
    rows = [["tables", *(f"{protocol}: {what}" for protocol in protocols for what in ("mean AUROC", "mean rank"))]]
    for name in tables["listed"]:
        own = [parts["all"]["detectors"][name] for parts in protocols.values()]
        rows.append([name, *(cell for row in own for cell in (f"{row['mean_auroc']:.3f}", f"{row['mean_rank']:.2f}"))])
    limits = [cell for parts in protocols.values() for cell in ("", f"{parts['all']['critical_difference']:.2f}")]
    friedman = [cell for parts in protocols.values() for cell in ("", p_cell(parts["all"]["friedman_p_value"]))]
    return markdown([*rows, ["critical difference of ranks", *limits], ["Friedman's test, p", *friedman]])


def by_rank(tables: dict) -> list[str]:
    """Those that are ranked, then the others."""
    first = next(iter(tables["verdicts"].values()))["all"]["detectors"]
    return [*tables["listed"], *(name for name in first if name not in tables["listed"])]


def gap(own: dict, tables: dict, who: str) -> float:
    rivals = [name for name in tables["listed"] if name != tables["default"]]
    best = own[who]["auroc"] if who in own else max(own[name]["auroc"] for name in rivals)
    return own[tables["default"]]["auroc"] - best


def test_cells(test: dict | None) -> list[str]:
    if test is None:
        return ["", "", ""]
    counts = f"{test['wins']} / {test['ties']} / {test['losses']}"
    return [f"{test['difference']:+.3f}", counts, p_cell(test["adjusted_p_value"])]


def p_cell(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(met: bool) -> str:
    return "met" if met else "**not met**"


def few_rows_table() -> str:
    """Worst and mean over kinds of rows and seeds, by number of rows and features."""
    cases = read("few_rows")["cases"]
    forms = list(dict.fromkeys(case["form"] for case in cases))
    measures = {"mean AUROC": ("auroc", np.mean), "worst": ("auroc", np.min), "flagged at 10 %": ("flagged", np.mean)}
    rows = [["features", "rows", *(f"{form}: {measure}" for form in forms for measure in measures)]]
    for d, n in dict.fromkeys((case["d"], case["n"]) for case in cases):
        row = [str(d), str(n)]
        for form in forms:
            these = [case for case in cases if (case["form"], case["n"], case["d"]) == (form, n, d)]
            row += [f"{summary([case[name] for case in these]):.2f}" for name, summary in measures.values()]
        rows.append(row)
    return markdown(rows)


VECTORS = {
    "tables-run": run_line,
    "tables-bar": bar_table,
    "tables-semi-supervised": lambda: protocol_table("semi-supervised"),
    "tables-unsupervised": lambda: protocol_table("unsupervised"),
    "tables-verdict": verdict_list,
    "tables-failures": failures_list,
    "tables-by-set": by_set_table,
    "few-rows": few_rows_table,
}
