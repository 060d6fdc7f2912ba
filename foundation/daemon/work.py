"""The ways to run work: keyed queue, joining, back-off (one door to the three rooms)."""

from foundation.daemon.backoff import Backoff, Pauses
from foundation.daemon.joining import Conflict, Joining, StillRunning
from foundation.daemon.keyed_queue import KeyedQueue

__all__ = ["Backoff", "Conflict", "Joining", "KeyedQueue", "Pauses", "StillRunning"]
