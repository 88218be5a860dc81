"""One small interface (`base.py`) and one file per model; the only part of training that serving may import."""
