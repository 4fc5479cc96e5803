"""Parts of every report: the HTML page, curves, and facts of the machine."""
