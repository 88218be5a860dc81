"""What is known of a customer at a moment: sources, point-in-time features, label, sequences."""
