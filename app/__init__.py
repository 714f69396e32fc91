"""poolwire: pooled ZMQ, SQL and HTTP connections for agent services, leased for one call."""
