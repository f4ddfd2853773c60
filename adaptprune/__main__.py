"""`python -m adaptprune`"""

from adaptprune.cli import main

if __name__ == "__main__":
    main()
