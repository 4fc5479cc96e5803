"""The brain models, one room for each published system."""
