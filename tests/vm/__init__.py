"""The virtual machine in which boxes cross a real kexec."""
