"""Kinds of work that networks are trained for, and their scores."""
