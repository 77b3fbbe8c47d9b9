"""The batching service: takes HTTP, forms batches, hands them to workers."""
