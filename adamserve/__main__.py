"""`python -m adamserve` is `adamserve`."""

from adamserve.cli import main

main()
