"""OpenAI-compatible HTTP server that batches the requests of its clients and hides thoughts."""
