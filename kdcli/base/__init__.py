"""What every other room may use: errors, words, files, facts, and the parts of other packages."""
