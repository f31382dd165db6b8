"""The report: report.html and the README's picture, built from a run folder alone.

Numbers are taken as they stand in the files: nothing is evaluated or decided here.
"""
