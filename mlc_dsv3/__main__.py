"""`python -m mlc_dsv3` is the command `mlc_dsv3`."""

from mlc_dsv3.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
