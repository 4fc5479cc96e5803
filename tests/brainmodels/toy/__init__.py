"""A whole system in forty lines: what adding one to the table takes."""
