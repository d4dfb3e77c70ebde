"""Pages in the browser: picks, classes, progress."""
