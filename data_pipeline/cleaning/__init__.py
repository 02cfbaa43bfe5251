"""Cleaning of single documents: repairs, filters and masks, as steps that the configuration names.

`cleaner.Cleaner` is the entry point. `table.rules_table()` lists every rule with its threshold and its publication.
"""
