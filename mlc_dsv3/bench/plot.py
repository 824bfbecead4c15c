"""A picture of a run: tok/s against depth, and the roofline (Williams, Waterman and Patterson 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc_dsv3.errors import UserError
from mlc_dsv3.output_paths import output_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".pdf", ".svg")
_MARKERS = {"prefill": "s", "decode": "o", "verify": "^"}


def check_path(path: Path) -> None:
    """UserError for a picture that could not be written there."""
    if path.suffix not in FORMATS:
        raise UserError(f"--plot is {path}; it takes a file that ends in {', '.join(FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot is {path}, and there is no folder {path.parent}")
    output_file(path)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the measurements of a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    decode, prefill, roof = figure.subplots(1, 3)
    _draw_steps(decode, [result for result in results if result["kind"] != "prefill"])
    _draw_prefill(prefill, [result for result in results if result["kind"] == "prefill"])
    _draw_roofline(roof, results)
    first = results[0]
    figure.suptitle(f"{first['model']} on {first['threads']} threads, {first['level']}")
    figure.savefig(path, dpi=120)


def _draw_steps(axes: Axes, results: list[dict[str, Any]]) -> None:
    for (quantization, kind, batch, rows), some in _curves(results, "quantization", "kind", "batch", "rows"):
        detail = f", batch {batch}" if batch > 1 else f" of {rows} rows" if rows > 1 else ""
        line = _speed_curve(axes, some, f"{quantization} {kind}{detail}", _MARKERS[kind])
        if kind == "decode":
            limit = [result["limit_gb_per_second"] * 1e9 / result["bytes_per_token"] for result in some]
            axes.plot(_depths(some), limit, color=line, linestyle=":", label=f"{quantization} memory's limit{detail}")
        _peer_curve(axes, some, f"{kind}{detail}", line)
    _finish(axes, "decode and verify", "depth (cached tokens)", "tok/s")


def _draw_prefill(axes: Axes, results: list[dict[str, Any]]) -> None:
    for (quantization, tokens), some in _curves(results, "quantization", "tokens"):
        line = _speed_curve(axes, some, f"{quantization} prefill {tokens}", _MARKERS["prefill"])
        _peer_curve(axes, some, f"prefill {tokens}", line)
    _finish(axes, "prefill", "depth (cached tokens)", "tok/s")


def _draw_roofline(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    points = [(result["gflops_per_second"] / result["gb_per_second"], result) for result in results]
    bandwidth = results[0]["limit_gb_per_second"]
    peak = max(result["limit_gflops_per_second"] for result in results)
    ridge = peak / bandwidth
    reach = [min(x for x, _ in points) / 4, ridge, max(4 * ridge, *(4 * x for x, _ in points))]
    axes.plot(reach, [min(peak, bandwidth * x) for x in reach], color="black")
    axes.annotate(
        f"{bandwidth:.1f} GB/s read", (reach[0], bandwidth * reach[0]), xytext=(6, 14), textcoords="offset points"
    )
    axes.annotate(
        f"{peak:.0f} GFLOP/s, multiplications alone", (reach[1], peak), xytext=(-40, 6), textcoords="offset points"
    )
    for (quantization, kind, batch), some in _curves(results, "quantization", "kind", "batch"):
        mine = [(x, result["gflops_per_second"]) for x, result in points if any(result is one for one in some)]
        axes.plot(
            *zip(*mine, strict=True), marker=_MARKERS[kind], linestyle="none", label=_label(quantization, kind, batch)
        )
        for (x, y), result in zip(mine, some, strict=True):
            axes.annotate(str(result["depth"]), (x, y), xytext=(5, -10), textcoords="offset points", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_ylim(top=2 * peak)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    _finish(axes, "roofline (numbers: depth)", "FLOP a byte read", "GFLOP/s", from_zero=False)


def _curves(results: Sequence[dict[str, Any]], *keys: str) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in keys), []).append(result)
    return list(groups.items())


def _label(quantization: str, kind: str, batch: int) -> str:
    return f"{quantization} {kind}" + (f", batch {batch}" if batch > 1 else "")


def _depths(results: list[dict[str, Any]]) -> list[int]:
    return [result["depth"] for result in results]


def _speed_curve(axes: Axes, results: list[dict[str, Any]], label: str, marker: str) -> str:
    rates = [result["tokens_per_second"] for result in results]
    return axes.plot(_depths(results), rates, marker=marker, label=label)[0].get_color()


def _peer_curve(axes: Axes, results: list[dict[str, Any]], label: str, color: str) -> None:
    compared = [result for result in results if result["versus"]]
    if compared:
        rates = [result["versus"]["tokens_per_second"] for result in compared]
        name = f"{compared[0]['versus']['engine'].partition(' ')[0]} {compared[0]['peer_quantization']} {label}"
        axes.plot(_depths(compared), rates, marker="x", linestyle="--", color=color, label=name)


def _finish(axes: Axes, title: str, x: str, y: str, *, from_zero: bool = True) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    if from_zero:
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
