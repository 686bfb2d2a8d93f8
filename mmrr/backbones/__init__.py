"""Model families, split where the scorers and embedders split them. Modules with a leading underscore are helpers."""
