"""FreiHAND's official scores, and the report around them."""
