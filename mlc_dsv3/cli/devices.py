"""`mlc_dsv3 devices`: what this machine can compile for and run on."""

from __future__ import annotations

import argparse

from mlc_dsv3.cli.output import print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def run(parsed: argparse.Namespace) -> None:
    """Print one line a device."""
    from mlc_dsv3.compiler import devices

    found = devices()
    if parsed.json:
        fields = ("name", "can_compile", "can_run", "reason")
        print_json([{field: getattr(device, field) for field in fields} for device in found])
        return
    rows = [(d.name, "yes" if d.can_compile else "no", "yes" if d.can_run else "no", d.reason) for d in found]
    print_table(rows, ("device", "compile", "run", ""))
