"""One folder per paper system that is not the detector: config keys, networks, data reader, configs, tests, README.

`fusiondet.plugins` finds the folders; nothing outside this one names a project.
"""
