"""Disks: the CSI services and the storage backends behind them."""
