"""The batching service: HTTP and workers around one queue."""
