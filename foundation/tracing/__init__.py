"""Traces of what goes from daemon to daemon, as an optional extra (`otel`): nothing is imported while it is off."""
