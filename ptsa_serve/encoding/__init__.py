"""Predictions as bytes: PNG, zip, npz, JSON, and colours for people."""
