"""Products with stored matrices, and what stands between two of them."""
