"""From files to tensors: bands, rasters, annotations on disk, converters, the synthetic city, and the loader."""
