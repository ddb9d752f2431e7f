"""The Token Factory gateway: what it is, in one package; the version and nothing else."""

__version__ = "0.1.0"
