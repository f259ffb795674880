"""Files, batches and fine-tuning of vendors that have their own: the official SDK on one side, the vendor's wire on the
other."""
