"""`python -m adaptprune`"""

from adaptprune.cli import main

main()
