"""The embedded sample data set; see ATTRIBUTION.md."""
