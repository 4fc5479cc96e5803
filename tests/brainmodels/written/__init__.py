"""Simulated subjects written to disk as published data sets are, for the tests of their readers."""
