"""What is shown: the page, tables, figures, the terminal."""
