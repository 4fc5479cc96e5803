"""Numbers of an earlier commit, which changes of structure must not move."""
