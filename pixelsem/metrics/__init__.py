"""Numbers from records: pure functions, no files, no printing."""
