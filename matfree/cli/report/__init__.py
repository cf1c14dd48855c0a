"""The HTML report: its records, tables, figures and page.

It imports neither the sections nor the commands, which describe their results in its records.
"""
