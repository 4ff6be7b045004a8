"""`python -m daemon` is `learnd`."""

from daemon.cli import main

if __name__ == "__main__":
    main()
