"""What operators see of both servers: metrics, logs and traces, and nothing of any query (I5)."""
