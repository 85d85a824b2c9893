"""From a bundle of ONNX graphs to TensorRT engines: recipes, lowering of the ring, building, cache, verification."""
