"""Run folders: atomic files, digests, manifests, costs. The lowest room: it knows no model."""
