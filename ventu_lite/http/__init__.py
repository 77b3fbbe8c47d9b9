"""An HTTP/1.1 server: connections, requests, answers. It knows nothing of models."""
