"""`python -m vitscale` is `vitscale`."""

from vitscale.cli import main

main()
