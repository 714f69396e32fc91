"""What the three pools share: checkout, expiry, counting, housekeeping, fork safety, settings, redaction."""
