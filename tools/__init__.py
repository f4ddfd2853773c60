"""What looks after the project itself: the lock of versions, and tests on other versions. Not part of the package."""
