"""The SQL database: schema, migrations and one noun a file."""
