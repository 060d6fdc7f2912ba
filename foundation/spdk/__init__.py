"""SPDK's JSON-RPC, typed."""
