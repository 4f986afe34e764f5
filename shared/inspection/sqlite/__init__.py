"""The database file as SQLite sees it: pages, integrity, schema."""
