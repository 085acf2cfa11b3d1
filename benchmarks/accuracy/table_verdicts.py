"""Who wins on tables: means and mean ranks over sets, the default against each rival, and whether the bar is met."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from skjepa.evaluation.comparison import critical_difference, friedman_p_value, holm, mean_ranks

METRICS = ("auroc", "aupr_out")
NOTES = ("failed", "warned")  # what a run tells beside its scores
TIE = 0.01  # AUROC on one set
Run = Mapping[str, Any]


def summary(
    runs: Mapping[tuple[str, str, str], Sequence[Run]],
    facts: Mapping[str, Mapping[str, Any]],
    *,
    default: str,
    listed: Sequence[str],
) -> dict[str, Any]:
    """Means over seeds by set and protocol, who failed where, and the verdicts over all sets and parts of them.

    Parameters
    ----------
    runs : mapping of (set, protocol, rival) -> runs, one a seed
        A run has {"auroc", "aupr_out", "seconds"} by name of the score, and what of `NOTES` there is to tell.
    facts : mapping of set -> dict
        With its "half"; the verdicts are told for each, and for the sets on which nobody listed failed.
    """
    sets: dict[str, dict[str, Any]] = {name: dict(own) for name, own in facts.items()}
    notes: dict[str, list[dict[str, Any]]] = {key: [] for key in NOTES}
    for (name, protocol, rival), seeds in runs.items():
        scores = [key for key in seeds[0] if key not in (*NOTES, "key")]
        sets[name].setdefault(protocol, {}).update(
            {score: over_seeds([run[score] for run in seeds]) for score in scores}
        )
        for key in NOTES:
            if told := [run[key] for run in seeds if run.get(key)]:
                place = {"set": name, "protocol": protocol, "rival": rival}
                notes[key].append({**place, "seeds": len(told), "first": told[0]})
    found: dict[str, dict[str, Any]] = {}
    for protocol in dict.fromkeys(protocol for _, protocol, _ in runs):
        failed = {note["set"] for note in notes["failed"] if note["protocol"] == protocol and note["rival"] in listed}
        parts = {"all": list(sets)}
        for name, own in facts.items():
            parts.setdefault(own["half"], []).append(name)
        parts["all finished"] = [name for name in sets if name not in failed]
        found[protocol] = {
            part: verdicts({name: sets[name][protocol] for name in names}, default, listed)
            for part, names in parts.items()
            if names
        }
    return {"default": default, "listed": list(listed), "sets": sets, **notes, "verdicts": found}


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means, and every seed's AUROC."""
    means = {key: float(np.mean([run[key] for run in runs])) for key in (*METRICS, "seconds")}
    return {**means, "auroc_by_seed": [round(run["auroc"], 5) for run in runs]}


def verdicts(sets: Mapping[str, Mapping[str, Any]], default: str, listed: Sequence[str]) -> dict[str, Any]:
    """Of some sets under one protocol.

    Parameters
    ----------
    sets : mapping of set -> detector -> {"auroc", "aupr_out", "seconds"}
    default : str
        The detector that the others are compared with.
    listed : sequence of str
        Detectors that are ranked, the default among them. The others have their means only.

    Returns
    -------
    dict
        - sets: how many;
        - detectors: mean_auroc, mean_aupr_out, mean_seconds over the sets, and mean_rank (by AUROC, 1 = best, equal
          ones share) of those listed;
        - critical_difference, friedman_p_value: of the mean ranks;
        - tests: the default against each rival, see `signed_ranks`;
        - bar: best mean AUROC, and best mean rank.
    """
    names = list(next(iter(sets.values())))
    auroc = {name: np.array([found[name]["auroc"] for found in sets.values()]) for name in names}
    table = np.stack([auroc[name] for name in listed])
    ranks = dict(zip(listed, mean_ranks(table).tolist(), strict=True))
    detectors = {
        name: {
            **{f"mean_{key}": _mean(sets, name, key) for key in (*METRICS, "seconds")},
            **({"mean_rank": ranks[name]} if name in ranks else {}),
        }
        for name in names
    }
    friedman = friedman_p_value(table)
    means = {name: detectors[name]["mean_auroc"] for name in listed}
    return {
        "sets": len(sets),
        "detectors": detectors,
        "critical_difference": critical_difference(len(listed), len(sets)),
        "friedman_p_value": None if np.isnan(friedman) else friedman,
        "tests": signed_ranks(auroc[default], {name: auroc[name] for name in listed if name != default}),
        "bar": {
            "best mean AUROC": _bar(means, default, sign=1),
            "best mean rank": _bar(ranks, default, sign=-1),
        },
    }


def signed_ranks(own: NDArray[np.float64], rivals: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Is one detector ahead over sets, beyond chance? Wilcoxon's signed-rank test, two-sided, Holm-corrected.

    Parameters
    ----------
    own : array of shape (n_sets,)
        AUROC of one detector.
    rivals : mapping of name -> array of shape (n_sets,)

    Returns
    -------
    list of dict, one for each rival
        difference (mean, less the rival's), wins, ties (within `TIE`), losses, p_value, adjusted_p_value. The sets are
        a random sample here, unlike in `skjepa.evaluation.paired_tests`; of equal ones the test takes no notice.
    """
    differences = {name: np.round(own - rival, 9) for name, rival in rivals.items()}  # rounding is no victory
    p = [float(wilcoxon(gap).pvalue) if gap.any() else 1.0 for gap in differences.values()]
    return [
        {
            "rival": name,
            "difference": float(gap.mean()),
            "wins": int((gap > TIE).sum()),
            "ties": int((np.abs(gap) <= TIE).sum()),
            "losses": int((gap < -TIE).sum()),
            "p_value": raw,
            "adjusted_p_value": float(adjusted),
        }
        for (name, gap), raw, adjusted in zip(differences.items(), p, holm(p), strict=True)
    ]


def _bar(values: Mapping[str, float], default: str, sign: int) -> dict[str, Any]:
    """The default against the best of the others; `sign` 1 where more is better, -1 where less is."""
    rivals = {name: value for name, value in values.items() if name != default}
    best = max(rivals, key=lambda name: sign * rivals[name])
    met = bool(sign * values[default] > sign * rivals[best])
    return {"measured": values[default], "best_rival": best, "best_of_rivals": rivals[best], "met": met}


def _mean(sets: Mapping[str, Mapping[str, Any]], name: str, key: str) -> float:
    return float(np.mean([found[name][key] for found in sets.values()]))
