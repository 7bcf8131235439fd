"""The conclusions of the thesis that runs can test, and the verdicts of ours on them."""
