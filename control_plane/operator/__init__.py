"""What operators ask of a control plane: OperatorService on a listener of its own."""
