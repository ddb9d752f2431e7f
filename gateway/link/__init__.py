"""The unix socket between a data process and the control process of its host."""
