"""What one machine shows of the suite: its daemons, switch, card, disks, certificates."""
