"""The small kit that Reelmesh's processes share: no domain words in here."""
