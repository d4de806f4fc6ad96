"""The node agent: hosts a model on one machine; `engine` holds its worker process."""
