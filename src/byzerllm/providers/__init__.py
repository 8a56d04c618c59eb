"""Vendors as data: see ``registry.py`` for the table's fields and the ``.toml`` files for the vendors."""
