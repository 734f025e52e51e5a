"""`python -m fedproxy` is the `fedproxy` command."""

from fedproxy.cli import main

main()
