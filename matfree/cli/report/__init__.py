"""The HTML report: its records, tables, figures and page."""
