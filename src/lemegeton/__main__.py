"""``python -m lemegeton``: the command line."""

from lemegeton.cli.main import main

if __name__ == "__main__":
    main()
