"""Places that hold objects: a folder or an S3-compatible bucket, behind one small protocol."""
