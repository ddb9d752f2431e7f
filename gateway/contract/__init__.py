"""OpenAI's shapes as bytes and values: pure, fed byte by byte in tests; no sockets."""
