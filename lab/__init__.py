"""The whole suite on one Linux machine, with no card and no cluster."""
