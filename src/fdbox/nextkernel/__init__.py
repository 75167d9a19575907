"""The kernel to jump into."""
