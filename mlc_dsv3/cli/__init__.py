"""The command line: main.py dispatches, one file a verb holds its arguments, the packages do the work."""
