"""`muonlab.run`: runs of one's own training script, logged as run folders."""
