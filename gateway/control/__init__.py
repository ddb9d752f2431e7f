"""The admin API of the control process: one noun a file."""
