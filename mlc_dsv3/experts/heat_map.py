"""A picture of the experts' load: layers down, experts across."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlc_dsv3.experts.load import ExpertLoad

_HOTTEST = 3.0  # times the mean, from where on colours do not change


def draw(loads: Mapping[str, ExpertLoad], title: str, path: Path) -> None:
    """Draw loads below each other, each under its name."""
    from matplotlib.figure import Figure

    height = 1.2 + len(loads) * (0.8 + 0.16 * max(len(load.layers) for load in loads.values()))
    figure = Figure(figsize=(11, height), layout="constrained")
    drawings = figure.subplots(len(loads), 1, squeeze=False)[:, 0]
    for axes, (name, load) in zip(drawings, loads.items(), strict=True):
        image = axes.imshow(
            load.relative, aspect="auto", cmap="viridis", vmin=0, vmax=_HOTTEST, interpolation="nearest"
        )
        axes.set_title(f"{name}: the busiest expert of a layer {load.violation.mean():.0%} above the mean, on average")
        axes.set_yticks(range(len(load.layers)), map(str, load.layers))
        axes.set_ylabel("layer")
    drawings[-1].set_xlabel("expert")
    figure.colorbar(image, ax=list(drawings), label="load, of the mean", extend="max")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
