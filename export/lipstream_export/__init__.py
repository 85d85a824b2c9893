"""The student's parts as ONNX graphs, written as a bundle and checked against PyTorch."""
