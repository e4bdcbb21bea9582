"""``python -m frcli``."""

from frcli.cli.app import main

if __name__ == "__main__":
    main()
