"""Bytes only: tensors in chunks, numbers in encodings, messages in frames, errors in statuses."""
