"""The process that outlives the service: holds a copy of every descriptor, and starts the service again when it dies."""
