"""The file format of results and checkpoints, and files with the rows of one process each."""
