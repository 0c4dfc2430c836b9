"""The example operator: see README.md."""
