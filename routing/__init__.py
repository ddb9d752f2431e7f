"""Which endpoint serves a request: filter, score, pick, over values; no sockets."""
