"""A suite of tests that any bridge of the OPI storage API can be put to: pytest --pyargs opi_bridge.conformance."""
