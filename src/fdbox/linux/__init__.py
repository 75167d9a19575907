"""The kernel's ABI and nothing else: one function a kernel operation, no policy."""
