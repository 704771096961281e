"""`/v1/files` and `/v1/fine_tuning/jobs`: training over OpenAI's own endpoints."""
