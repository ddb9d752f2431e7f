"""Migrations, the same on both databases. ``HEAD`` is the newest, known without importing alembic."""

HEAD = "0012"
