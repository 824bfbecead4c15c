"""The tables that `mlc_dsv3 bench` prints for people; programs take `--json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlc_dsv3.cli.output import print_table, size

if TYPE_CHECKING:
    from mlc_dsv3.bench.attention import AttentionSpeed
    from mlc_dsv3.bench.drafted import DraftedSpeed

_SPEED = ("measure", "quantization", "depth", "batch", "tok/s", "ms", "MB a token", "GB/s", "share", "GFLOP/s", "share")
# Kernels below this share of a step are summed up for people.
_LEAST_SHARE = 0.01


def print_tables(results: Sequence[dict[str, Any]]) -> None:
    """Speed, startup and memory, and where they were measured the peer and the kernels."""
    verified = any(result["time_ratio"] for result in results)
    print_table([_speed_row(result, verified) for result in results], (*_SPEED, *(["step ratio"] if verified else [])))
    for quantization, limit in {each["quantization"]: each["limit_gflops_per_second"] for each in results}.items():
        print(f"limits: {results[0]['limit_gb_per_second']:.1f} GB/s and, in {quantization}, {limit:.0f} GFLOP/s")
    print()
    by_quantization = {result["quantization"]: result for result in results}
    columns = ("", *by_quantization)
    rows = [(name, *map(show, by_quantization.values())) for name, show in _STARTUP.items()]
    print_table([row for row in rows if row[0] not in _OF_GPUS or any(row[1:])], columns)
    notes = {result["cold_note"] for result in results if result["cold_note"]}
    for note in sorted(notes):
        print(f"no cold start: {note}")
    if any(result["versus"] for result in results):
        print()
        _print_peer(results)
    for result in results:
        if result["profile"]:
            print()
            _print_profile(result)


def print_attention(results: Sequence[AttentionSpeed]) -> None:
    """One layer's attention beside what memory and arithmetic allow, and beside the peer's."""
    columns = ("heads", "batch", "depth", "cache", "µs", "GB/s", "share", "TFLOP/s", "share", "peer µs", "ratio")
    rows = [
        (
            str(each.heads),
            str(each.batch),
            str(each.depth),
            each.cache_dtype,
            f"{each.seconds * 1e6:.1f}",
            f"{each.gb_per_second:.1f}",
            f"{each.share_of_limit:.0%}",
            f"{each.tflops:.3g}",
            f"{each.share_of_tflops:.0%}",
            "" if each.peer_seconds is None else f"{each.peer_seconds * 1e6:.1f}",
            "" if each.ratio is None else f"{each.ratio:.2f} ({each.ratio_min:.2f}–{each.ratio_max:.2f})",
        )
        for each in results
    ]
    print_table(rows, columns)
    first = results[0]
    print(f"limits: {first.limit_gb_per_second:.1f} GB/s and {first.limit_tflops:.3g} TFLOP/s")
    for peer in sorted({each.peer for each in results if each.peer}):
        print(f"peer: {peer}")


def print_drafted(results: Sequence[DraftedSpeed]) -> None:
    """Decoding with drafts beside decoding without."""
    speeds = ("tok/s", "plain", "speed-up", "least", "most", "bound", "share")
    columns = ("drafts", "batch", *speeds, "tokens a step", "host", "faults a step", "right")
    rows = [
        (
            each.drafts,
            str(each.batch),
            f"{each.tokens_per_second:.1f}",
            f"{each.plain_tokens_per_second:.1f}",
            f"{each.speed_up:.2f}",
            f"{each.speed_up_min:.2f}",
            f"{each.speed_up_max:.2f}",
            "" if each.bound is None else f"{each.bound:.2f}",
            "" if each.share_of_bound is None else f"{each.share_of_bound:.0%}",
            f"{each.tokens_per_step:.2f}",
            "" if each.host_share is None else f"{each.host_share:.1%}",
            f"{each.faults_per_step:.1f}",
            " ".join(f"{share:.0%}" for share in each.accepted),
        )
        for each in results
    ]
    print_table(rows, columns)


def _speed_row(result: dict[str, Any], verified: bool) -> tuple[str, ...]:
    row = (
        _title(result),
        result["quantization"],
        str(result["depth"]),
        str(result["batch"]),
        f"{result['tokens_per_second']:.1f}",
        f"{result['seconds'] * 1e3:.1f}",
        f"{result['bytes_per_token'] / 1e6:.3g}",
        f"{result['gb_per_second']:.2f}",
        f"{result['share_of_limit']:.0%}",
        f"{result['gflops_per_second']:.0f}",
        f"{result['share_of_arithmetic']:.0%}",
    )
    if not verified:
        return row
    ratio, dense = result["time_ratio"], result["dense_time_ratio"]
    return (*row, (f"{ratio:.2f}" if ratio else "") + (f" (dense {dense:.2f})" if dense else ""))


def _title(result: dict[str, Any]) -> str:
    return f"{result['kind']} {result['rows']}" if result["kind"] != "decode" else "decode"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _microseconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1e6:.1f} µs"


def _size(value: int | None) -> str:
    return "" if value is None else size(value)


_STARTUP = {
    "compilation": lambda result: _seconds(result["compile_seconds"]) or "not recorded",
    "load": lambda result: _seconds(result["load_seconds"]),
    "then first token": lambda result: _seconds(result["first_token_seconds"]),
    "load, cold page cache": lambda result: _seconds(result["cold_load_seconds"]),
    "then first token, cold": lambda result: _seconds(result["cold_first_token_seconds"]),
    "weights, mapped": lambda result: _size(result["weight_bytes"]),
    "latent caches": lambda result: _size(result["cache_bytes"]),
    "peak RssAnon": lambda result: _size(result["peak_rss_anon_bytes"]),
    "of it beside the caches": lambda result: _size(result["other_anon_bytes"]),
    "host's time a launch": lambda result: _microseconds(result["host_seconds_per_launch"]),
}
_OF_GPUS = {"host's time a launch"}


def _print_peer(results: Sequence[dict[str, Any]]) -> None:
    rows = [
        (
            _title(result),
            str(result["depth"]),
            str(result["batch"]),
            f"{result['tokens_per_second']:.1f}",
            f"{compared['tokens_per_second']:.1f}",
            f"{compared['ratio']:.2f}",
            f"{compared['ratio_min']:.2f}–{compared['ratio_max']:.2f}",
        )
        for result in results
        if (compared := result["versus"])
    ]
    first = results[0]
    peer = f"{first['peer_engine'].partition(' ')[0]} {first['peer_quantization']}"
    print_table(rows, ("measure", "depth", "batch", "ours tok/s", f"{peer} tok/s", "ratio", "least–most"))
    print(
        f"{first['peer_engine']}: load {_seconds(first['peer_load_seconds'])}, "
        f"then first token {_seconds(first['peer_first_token_seconds'])}, RssAnon {_size(first['peer_rss_anon_bytes'])}"
    )


def _print_profile(result: dict[str, Any]) -> None:
    print(f"{_title(result)} in {result['quantization']}, depth {result['depth']}, batch {result['batch']}, by kernel")
    shown = [kernel for kernel in result["profile"] if kernel["share"] >= _LEAST_SHARE]
    # The CPU has no launches.
    counted = [name for name in ("calls", "launches") if any(kernel[name] for kernel in shown)]
    rows = [
        (
            kernel["operator"],
            "×".join(map(str, kernel["shape"])),
            *(str(kernel[name]) for name in counted),
            *_time(kernel),
        )
        for kernel in shown
    ]
    sums = [
        {key: sum(kernel[key] for kernel in some) for key in ("milliseconds", "share", "bytes")}
        for some in ([kernel for kernel in result["profile"] if kernel not in shown], result["profile"])
    ]
    rows += [
        (name, "", *("" for _ in counted), *_time(total)) for name, total in zip(("others", "all"), sums, strict=True)
    ]
    print_table(rows, ("operator", "last output", *counted, "ms", "share", "MB", "GB/s"))


def _time(kernel: dict[str, Any]) -> tuple[str, ...]:
    milliseconds, nbytes = kernel["milliseconds"], kernel["bytes"]
    speed = nbytes / milliseconds / 1e6 if milliseconds else 0.0
    return f"{milliseconds:.3f}", f"{kernel['share']:.1%}", f"{nbytes / 1e6:.3f}", f"{speed:.1f}"
