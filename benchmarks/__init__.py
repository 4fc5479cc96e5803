"""Benchmarks of this project and its peers. They may import everything, and only tests import them."""
