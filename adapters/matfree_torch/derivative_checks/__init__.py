"""Checks that the second derivatives of torch are right, and the search for those that are not."""
