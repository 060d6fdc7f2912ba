"""One volume on one DPU: connect the remote target, emulate the disk, or undo it."""
