"""`python -m depthdial` is the command `depthdial`."""

from depthdial.cli import main

if __name__ == "__main__":
    main()
