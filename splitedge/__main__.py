"""`python -m splitedge`."""

from splitedge.cli import main

if __name__ == "__main__":
    main()
