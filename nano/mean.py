"""Put the weighted mean of several runs' transformers into a run.

    python -m nano.mean --folder RUN --of FIRST/transformer.pt 0.2 --of SECOND/transformer.pt 0.8

Of weights that go back to the same ones the mean draws well what any of them does (model soups, Wortsman et al. 2022):
a run that learnt new sizes forgets some of what it knew, and its mean with the weights from before has both.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from nano.config import Folders
from nano.training import arguments, opened, restored, save


def mean_of(parts: list[tuple[dict[str, Tensor], float]]) -> dict[str, Tensor]:
    """The weighted mean of averaged weights of the same shapes.

    Raises:
        ValueError: the shares are not 1 in all.
    """
    if abs(sum(share for _, share in parts) - 1) > 1e-6:
        raise ValueError(f"the shares must be 1 in all, got {sum(share for _, share in parts):g}")
    weights, share = parts[0]
    total = {name: share * weight for name, weight in weights.items()}
    for weights, share in parts[1:]:
        for name, weight in total.items():
            weight += share * weights[name]
    return total


def mix(folders: Folders, sources: list[tuple[Path, float]]) -> None:
    """Write a run's transformer: the last source's checkpoint, with the mean of all in place of its averaged weights.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: the shares are not 1 in all.
    """
    states: list[dict[str, Any]] = []
    for path, _ in sources:
        if (state := restored(path)) is None:
            raise FileNotFoundError(f"{path}: no checkpoint of a transformer")
        states.append(state)
    parts = [(state["average"], share) for state, (_, share) in zip(states, sources, strict=True)]
    save(folders.transformer, states[-1] | {"average": mean_of(parts)})


def main() -> None:
    parser = arguments("take the mean of several runs")
    what = "a transformer.pt, and its share"
    parser.add_argument("--of", nargs=2, action="append", required=True, metavar=("CHECKPOINT", "SHARE"), help=what)
    parsed = parser.parse_args()
    _, folders = opened(parsed)
    mix(folders, [(Path(path), float(share)) for path, share in parsed.of])


if __name__ == "__main__":
    main()
