"""The gRPC edge: translates between grpc and the application port."""
