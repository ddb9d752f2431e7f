"""The file an operator writes and the database it becomes: read, plan, apply, export."""
