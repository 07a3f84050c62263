"""Everything with flags, files, data and models; the library has none."""
