"""What ``serve`` adds to the batching service: the user's own app beside it."""
