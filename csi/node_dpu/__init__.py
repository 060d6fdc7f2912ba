"""Decides which attachments a DPU must have, and converges to them."""
