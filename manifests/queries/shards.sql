-- The shards, one row a file.
--
-- Parameters:
--   split               only shards of this split
-- Columns:
--   shard               file name below shards/
--   split               train, val or test
--   num_clips           clips in it
--   num_samples         frames in it
--   size_bytes          of the file
--   bytes_per_sample    of a picture with its label and the tar's padding
--   licences            of the sources of its clips; '' stands for a source that names none
SELECT
    shard,
    split,
    num_clips,
    num_samples,
    size_bytes,
    round(size_bytes / nullif(num_samples, 0))::BIGINT AS bytes_per_sample,
    licences
FROM shards
WHERE $split IS NULL OR split = $split
ORDER BY shard
