-- Rows that contradict each other. No rows: clips, frames, sources and shards agree (files: curation verify).
--
-- Columns:
--   what                what is wrong
--   id                  clip_id or shard
WITH counted AS (SELECT clip_id, count(*) AS n FROM frames GROUP BY clip_id),
packed AS (
    SELECT shard, count(*) AS num_clips, sum(num_frames) AS num_samples
    FROM clips
    WHERE shard IS NOT NULL
    GROUP BY shard
)
SELECT 'frames of a clip that is not there' AS what, clip_id AS id FROM counted ANTI JOIN clips USING (clip_id)
UNION ALL
SELECT 'clip with fewer or more frames than it says', clip_id
FROM clips LEFT JOIN counted USING (clip_id) WHERE num_frames IS DISTINCT FROM n
UNION ALL
SELECT 'clip of a source that is not there', clip_id FROM clips ANTI JOIN sources USING (source_id)
UNION ALL
SELECT 'kept clip without a split', clip_id FROM clips WHERE decision = 'keep' AND split IS NULL
UNION ALL
SELECT 'shard whose clips or samples are not those that it says', shard
FROM shards FULL JOIN packed USING (shard)
WHERE shards.num_clips IS DISTINCT FROM packed.num_clips OR shards.num_samples IS DISTINCT FROM packed.num_samples
ORDER BY what, id
