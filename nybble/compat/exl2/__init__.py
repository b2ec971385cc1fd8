"""The functions of ``exllamav2_ext`` by family; :mod:`nybble.compat.exllamav2_ext` puts them together."""
