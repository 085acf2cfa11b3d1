from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import numpy as np
import pytest
from numpy.typing import NDArray

from skjepa.persistence.schema import Above, Mark, MayLack, Record, Saved, SchemaError, Unfitted, check, declared_by

Floats = NDArray[np.float64]


@dataclass
class Inner:
    rows: Annotated[Floats, "n K"]
    names: MayLack[Annotated[NDArray[np.object_], "K"]]


class Pair(TypedDict):
    left: Annotated[Floats, "d"]
    right: NotRequired[Annotated[Floats, "d"]]


@declared_by(Pair)
class Written:
    """By what it is not: it has no attributes left and right."""


class Estimator:
    depth: int
    scale_: Annotated[float, Above(0, below=2)]

    def __init__(self, depth=1):
        self.depth = depth


class Outer:
    kind: ClassVar[str] = "no attribute of an instance"
    flag: bool
    count: Annotated[int, "n"]
    number: float
    finite: Annotated[float, Mark.FINITE]
    word: Annotated[Any, Saved(Literal["a", "b"])]
    inner: Annotated[Inner, "n K=d"] | None
    weights: dict[str, Annotated[Floats, "d"]]
    scores: Annotated[Floats, "_", Mark.MAY_BE_INFINITE]
    pair: tuple[int, str]
    many: tuple[int, ...] | list[int]
    settings: Annotated[Pair, "d"]
    parameter: Unfitted[Estimator]
    fitted: Estimator
    whatever: Any


def record(**changes):
    state = {
        "flag": True,
        "count": 3,
        "number": np.inf,
        "finite": 1,
        "word": "a",
        "inner": Record(Inner, {"rows": np.ones((3, 2)), "names": np.array(["x", "y"], dtype=object)}),
        "weights": {"u": np.zeros(2)},
        "scores": np.array([np.nan]),
        "pair": (1, "x"),
        "many": [1, 2],
        "settings": {"left": np.ones(2)},
        "parameter": Record(Estimator, {"depth": 2}),
        "fitted": Record(Estimator, {"depth": 2, "scale_": 1.5}),
        "whatever": object,
    }
    return Record(Outer, {name: value for name, value in (state | changes).items() if value is not ...})


def test_what_is_declared_passes():
    check(record())
    check(record(inner=None, many=(1, 2), number=3, settings={"left": np.ones(2), "right": np.ones(2)}))
    check(record(inner=Record(Inner, {"rows": np.ones((3, 2))})))
    check(Record(Written, {"left": np.ones(1)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flag": ...}, r"^Outer lacks flag"),
        ({"more": 1}, r"^Outer has no attribute more"),
        ({"kind": "x"}, r"has no attribute kind"),
        ({"flag": 1}, r"^Outer\.flag is 1, must be bool"),
        ({"count": 3.0}, r"count is 3\.0, must be int"),
        ({"count": True}, r"count is True, must be int"),
        ({"count": 10**30}, r"count is 1000"),
        ({"count": 4}, r"has n = 3, which is 4 elsewhere"),
        ({"count": 0}, r"count has n = 0"),
        ({"finite": np.nan}, r"finite is not finite"),
        ({"word": "c"}, r"word is 'c', must be Literal\['a', 'b'\]"),
        ({"inner": 5}, r"inner is 5, must be Inner or None"),
        ({"inner": Record(Estimator, {})}, r"inner is a Estimator, must be Inner or None"),
        ({"inner": Record(Inner, {})}, r"^Outer\.inner lacks rows"),
        (
            {"inner": Record(Inner, {"rows": np.ones(3)})},
            r"^Outer\.inner\.rows has shape \(3,\), must be of .*\(n, K\)",
        ),
        ({"inner": Record(Inner, {"rows": np.ones((3, 3))})}, r"has d = 2, which is 3 elsewhere"),
        (
            {"inner": Record(Inner, {"rows": np.ones((3, 2), int)})},
            r"rows is an array of int64, must be an array of floa",
        ),
        ({"inner": Record(Inner, {"rows": np.full((3, 2), np.inf)})}, r"rows holds numbers that are not finite"),
        ({"weights": {"u": np.zeros(3)}}, r"weights\['u'\] has d = 3, which is 2 elsewhere"),
        ({"weights": []}, r"weights is \[\], must be dict"),
        ({"pair": (1,)}, r"pair is \(1,\), must be tuple"),
        ({"pair": ("x", 1)}, r"pair\[0\] is 'x', must be int"),
        ({"many": ["x"]}, r"many\[0\] is 'x', must be int"),
        ({"settings": {}}, r"settings lacks left"),
        ({"settings": {"left": np.ones(2), "right": np.ones(3)}}, r"settings\['right'\] has d = 3"),
        ({"settings": {"left": np.ones(3)}}, r"settings has d = 3, which is 2 elsewhere"),
        ({"parameter": Record(Estimator, {"scale_": 1.0})}, r"parameter lacks depth"),
        ({"fitted": Record(Estimator, {"depth": 2})}, r"fitted lacks scale_"),
        ({"fitted": Record(Estimator, {"depth": 2, "scale_": 2.0})}, r"scale_ must be above 0 and below 2"),
    ],
)
def test_what_is_not_is_named(changes, message):
    with pytest.raises(SchemaError, match=message):
        check(record(**changes))
