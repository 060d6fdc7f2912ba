"""What a storage backend is, and the backends that come with the suite."""
