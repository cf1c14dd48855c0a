"""The HTML report: its page, its tables and its pictures."""
