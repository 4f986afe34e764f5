"""The Lambda behind S3's events: judges each delta that arrived and acts on the verdict."""
