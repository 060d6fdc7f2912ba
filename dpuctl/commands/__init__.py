"""dpuctl's commands, one subject a module."""
