"""Makes `python -m dispatcher` run the `dispatcher` command."""

from dispatcher.cli import main

main()
