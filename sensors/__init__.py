"""What happened outside → requests for runs; no work is done here."""
