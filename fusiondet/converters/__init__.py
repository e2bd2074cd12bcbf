"""From other people's files to data sets.

A new data source implements `source.Source` and is listed in `prepare.SOURCES`; `conversion.convert` does the rest:
processes, resuming, splits, reports, writing. `tiles` takes any rasters with any footprints, without new code.
"""
