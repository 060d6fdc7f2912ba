"""A stand-in for SPDK's target: the same answers over JSON-RPC, with files for disks.

It is proven against recordings of SPDK 26.05 (tests/spdk); where the real one is dull, so is it. Methods that it leaves
out are answered "Method not found". The product never imports it.
"""
