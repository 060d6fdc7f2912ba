"""The bridge against its own conformance suite, whose tests run here as they are."""

from opi_bridge.conformance.test_resources import *  # noqa: F403  # each name is a test or its fixture
