"""What `dpu-lab demo` does and shows."""
