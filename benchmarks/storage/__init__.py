"""What the storage benchmark stands on."""
