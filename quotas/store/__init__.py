"""Where reservations live: in this process, or in Redis and Valkey."""
