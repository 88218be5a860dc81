"""What must hold before anything moves on: contracts, metrics, promotion gates."""
