"""Shows messages as their readers see them, as HTML and in a terminal."""
