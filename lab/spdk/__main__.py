"""``python -m lab.spdk``."""

from lab.spdk.app import main

main()
