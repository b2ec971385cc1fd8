"""Programs for whoever works on nybble; nothing of this is installed."""
