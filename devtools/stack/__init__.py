"""AWS on this machine: S3 servers, queues and the functions of serverless.yml."""
