"""`python -m fdbox` is the `fdbox` command."""

from fdbox.cli.main import main

main()
