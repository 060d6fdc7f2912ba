"""One module a card: how it emulates NVMe functions."""
