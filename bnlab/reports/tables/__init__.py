"""The thesis's tables with our numbers beside its own, as text, CSV and Markdown."""
