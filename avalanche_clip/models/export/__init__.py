"""Models written as the files of other libraries."""
