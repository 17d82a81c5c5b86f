"""The LivePortrait networks, face analysers and animation. Importing this package loads no heavy dependency."""

import os

# ONNX Runtime reports to its makers what runs and on which machine; it asks once, when it is first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
