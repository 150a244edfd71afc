"""The sections of scripts/measure_gpus.py."""
