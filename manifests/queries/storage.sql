-- What the data set takes on disk, as its manifests know it: tables, shards, and the crops of kept clips in no shard yet.
-- Those are in staging/ only while a run has not ended: after `select` with looser thresholds the next run makes them.
--
-- Columns:
--   part                a table of the manifests, 'shards/' or 'staging/'
--   num_files           files
--   num_rows            rows of a table, samples of the shards, clips of staging
--   size_bytes          together
--   bytes_per_row       mean
WITH parts AS (
    SELECT
        "table" AS part,
        count(*) AS num_files,
        sum(num_rows)::BIGINT AS num_rows,
        sum(size_bytes)::BIGINT AS size_bytes
    FROM files
    GROUP BY ALL
    UNION ALL
    SELECT 'shards/', count(*), sum(num_samples)::BIGINT, sum(size_bytes)::BIGINT FROM shards
    UNION ALL
    SELECT 'staging/', count(*), count(*), sum(staged_bytes)::BIGINT
    FROM clips
    WHERE decision = 'keep' AND shard IS NULL
)
SELECT part, num_files, coalesce(num_rows, 0) AS num_rows, coalesce(size_bytes, 0) AS size_bytes,
    round(size_bytes / nullif(num_rows, 0), 1) AS bytes_per_row
FROM parts
ORDER BY size_bytes DESC, part
