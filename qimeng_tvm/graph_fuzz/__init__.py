"""Random inference graphs as ONNX models: whatever they hold, the pipeline must build them and compute rightly."""

from __future__ import annotations
