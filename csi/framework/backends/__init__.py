"""Built-in storage backends, one module each."""
