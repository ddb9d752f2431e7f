"""Limits, reservations, settlement and prices: pure rules, and the stores that keep them."""
