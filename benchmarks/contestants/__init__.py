"""
What is measured: one module a contestant, each run in a process and environment of its own.

They import the standard library, this package and what they are to use, nothing else.
"""
