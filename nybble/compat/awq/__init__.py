"""The functions of ``awq_inference_engine`` by family; :mod:`nybble.compat.awq_inference_engine` puts them together."""
