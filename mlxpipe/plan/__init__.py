"""The decisions, made once from headers and JSON: a plan that can be printed and executed."""
