"""The benchmarks' official metrics, one file each, written from their definitions. Plain text and numbers only."""
