"""Gives every node's daemons their certificates: a signer with its own authority, and a renewer in each pod."""
