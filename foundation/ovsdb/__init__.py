"""OVSDB (RFC 7047) on asyncio: transactions, monitors and row events."""
