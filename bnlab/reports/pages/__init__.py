"""The report as pages: overview, conclusions, `report.md` and `report.html`."""
