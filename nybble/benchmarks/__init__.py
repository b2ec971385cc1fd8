"""What ``nybble bench`` runs: decoding, the ops, and the memory's own speed to judge them by."""
