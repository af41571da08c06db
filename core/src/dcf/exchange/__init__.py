"""Other programs' files: condensed sets written for them, and theirs read without running anything in them."""
