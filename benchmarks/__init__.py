"""What is measured, and against whom. Imports everything, is imported by tests alone."""
