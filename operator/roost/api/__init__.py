"""The three kinds of roost.dev: their models, their conditions, and the CRDs and pages that follow from them."""
