"""The figures of a report: which there are, their drawing, and their files' content."""
