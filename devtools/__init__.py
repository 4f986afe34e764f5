"""Tools around the product: the demo, the stack on one machine, real damage, and generators."""
