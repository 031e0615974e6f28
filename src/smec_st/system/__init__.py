"""What the operating system and our dependencies need: files, matrix products, quiet libraries."""
