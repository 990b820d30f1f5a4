"""Bytes → arrays, in guarded child processes that may crash, hang or run out of memory without harm."""
