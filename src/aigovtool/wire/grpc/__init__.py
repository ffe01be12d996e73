"""The protocol over gRPC: its messages, and what they are over HTTP. Needs the extra ``grpc``."""
