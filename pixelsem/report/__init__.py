"""What a paper would print: tables from metrics."""
