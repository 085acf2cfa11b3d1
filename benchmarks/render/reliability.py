"""What docs/guide/reliability.md says was tried; `python -m benchmarks.render` puts it in its place."""

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown

WORDS = {
    "killed": "SIGKILL of a run at a random moment, then the run started again, until it ends",
    "two writers killed": "two runs of the same images into one store, SIGKILL of one at a random moment",
    "journal cut": "a journal cut off at a random byte",
    "bit of a journal": "one bit of a journal flipped",
    "bit of a shard": "one bit of a shard flipped",
    "file size limit": "the system refuses to let a file grow beyond a random size, during a write",
    "no permission": "another user reads a store and tries to write to it",
    "one cache, four processes": "four processes keep one sample at a time in one cache",
}


def tried_table() -> str:
    """What was tried, how often, and what was lost."""
    found = read("reliability")["trials"]
    rows = [["tried", "times", "noticed", "computed again, at most", "samples lost", "tables or rows not as expected"]]
    for name, words in WORDS.items():
        counts = found[name]
        noticed = counts.get("found", counts.get("named"))
        rows.append(
            [
                words,
                f"{counts['times']:,}",
                "" if noticed is None else f"{noticed:,}",
                again(name, counts),
                f"{counts['lost']}",
                f"{counts['different']}",
            ]
        )
    return markdown(rows)


def again(name: str, counts: dict) -> str:
    most = counts.get("repeated_at_most")
    if most is None:
        return ""
    if name == "bit of a shard":
        return "the shard"
    return f"{most} micro-batch" + ("es" if most != 1 else "")


def sizes_line() -> str:
    """What the killed runs were."""
    found = read("reliability")
    killed, two = found["trials"]["killed"], found["trials"]["two writers killed"]
    return (
        f"Each run scores {found['images']} images, {found['broken']} of which cannot be read, in micro-batches of "
        f"{found['batch']}, with shards small enough for a dozen per run. {killed['times']} kills fell on "
        f"{killed['runs']} runs, and {killed['repeated_batches']} micro-batches were started again. "
        f"Of {two['runs']} kills of one of two writers, {two['times']} hit it while it was working."
    )


def soak_line() -> str:
    """A long run of one process: memory and speed."""
    found = read("soak_cpu")
    size = found["result_bytes"] / 2**20
    second, last = (found["resident_bytes"][i] / 2**20 for i in (1, -1))
    before, after = (found["seconds_per_image"][i] * 1e3 for i in (1, -1))
    return (
        f"{found['images']:,} images of 32x32 in one process: {second:,.0f} MiB of memory in the second tenth, "
        f"{last:,.0f} MiB in the last ({found['growth']:+.1%}); the result is {size:.0f} MiB. "
        f"Processor time per image was {before:.0f} ms in the second tenth, {after:.0f} ms in the last."
    )


def forged_line() -> str:
    """What came of forged folders of saved detectors."""
    found = read("forgery")
    total = {name: f"{n:,}" for name, n in found["total"].items()}
    return (
        f"{total['tried']} forged folders of {len(found['kinds'])} kinds of saved detectors: {total['refused']} were "
        f"refused when loaded, {total['refused in use']} when given new samples; {total['the same scores']} loaded and "
        f"gave the same scores, {total['other scores']} with other scores; {total['loads']} loaded and then failed."
    )


RELIABILITY = {"tried": tried_table, "tried-sizes": sizes_line, "soak": soak_line, "forged": forged_line}
