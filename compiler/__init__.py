"""The compiler: an ONNX model becomes a CKKS circuit. The whole pipeline is compiler.compile.compile_model."""
