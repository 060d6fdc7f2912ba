"""The OPI storage API for the card of this DPU."""
