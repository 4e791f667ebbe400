"""Image transforms that undo small changes: functions over batches, usable alone or in front of a classifier."""
