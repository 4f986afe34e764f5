"""S3 and local folders: the only room that talks to S3."""
