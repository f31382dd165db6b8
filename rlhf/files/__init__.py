"""What lies on disk and where: the paths of a run folder, whole writes, content hashes, the cache folder.

The lowest room. It knows neither the configuration nor what is in the files: whoever asks reads and writes them.
"""
