"""A stand-in for kubelet with its runtime: the order, time-outs and retries of the real ones, no containers."""
