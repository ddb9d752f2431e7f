"""What a process tells of itself: counters, the access line, traces. Never prompts, never secrets."""
