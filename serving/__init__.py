"""The champion and the policy behind an HTTP service that answers with a decision."""
