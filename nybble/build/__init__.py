"""The native library's toolchain: find compilers, describe the sources, build, and hand the result to the loader."""
