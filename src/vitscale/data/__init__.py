"""What it learns from: data sets prepared once and read as uint8 arrays. NumPy and Pillow, no torch."""
