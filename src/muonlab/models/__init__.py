"""Model families, one file each: config, module, roles. No model knows of an optimizer."""
