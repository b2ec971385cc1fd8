"""Layers over ops: linear, norm, rotary positions, attention, MLP, embedding; and what they ask of
a cache."""
