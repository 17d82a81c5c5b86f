"""What is known about every source, track, clip, frame and shard: Arrow schemas, Parquet files, DuckDB views."""
