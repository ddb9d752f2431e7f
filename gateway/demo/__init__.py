"""A demo engine that answers as vLLM does, for first steps and for tests."""
