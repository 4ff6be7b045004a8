"""What each command of `learnd` does, a module for each subject; cli.py puts them together."""
