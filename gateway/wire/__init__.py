"""Bytes and sockets of the data plane; no tenants, no money, no policy."""
