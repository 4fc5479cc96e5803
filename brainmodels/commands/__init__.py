"""What the commands of `veca brain` do, as functions."""
