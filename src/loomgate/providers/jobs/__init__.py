"""Files, batches and fine-tuning of vendors whose jobs are not OpenAI's (GATEWAY TR-25): one file a vendor.

What must live here: what a vendor has in their place (objects in a bucket, data sets, jobs), and OpenAI's shapes of it.
What must not: sending (a `Means` is given), and the formats of model calls, which are the dialects'.
"""
