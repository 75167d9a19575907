"""What takes a sealed box across: one file a carrier."""
