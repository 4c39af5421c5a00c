"""The policy language: text to tree, without evaluation."""
