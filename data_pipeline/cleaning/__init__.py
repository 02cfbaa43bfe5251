"""What happens to one document: repaired, filtered, masked, by steps that the configuration names.

`cleaner.Cleaner` is the face; `table.rules_table()` lists every rule with its threshold and the paper it comes from.
"""
