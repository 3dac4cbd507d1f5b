"""`python -m broker.cli`: how `bode up` starts its children."""

from broker.cli import main

main()
