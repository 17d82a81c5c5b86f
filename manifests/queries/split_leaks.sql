-- What is in two splits although it may be in one only. No rows: train and test share nobody.
--
-- Columns:
--   what                identity, source, group (split_group) or footage (a copy and its original)
--   id                  the identity_id, source_id, split_group or clip_id
--   splits              the splits that it is in
--   num_clips           its kept clips
WITH kept AS (
    SELECT clip_id, source_id, identity_id, split_group, duplicate_of, split FROM clips WHERE decision = 'keep'
),
members AS (
    SELECT 'identity' AS what, identity_id AS id, split, count(*) AS num_clips FROM kept GROUP BY ALL
    UNION ALL
    SELECT 'source', source_id, split, count(*) FROM kept GROUP BY ALL
    UNION ALL
    SELECT 'group', split_group, split, count(*) FROM kept GROUP BY ALL
    UNION ALL
    SELECT 'footage', copies.duplicate_of, unnest([copies.split, originals.split]), 1
    FROM kept AS copies JOIN kept AS originals ON copies.duplicate_of = originals.clip_id
    WHERE copies.split <> originals.split
)
SELECT what, id, list(DISTINCT split ORDER BY split) AS splits, sum(num_clips)::BIGINT AS num_clips
FROM members
WHERE id IS NOT NULL
GROUP BY what, id
HAVING min(split) <> max(split)
ORDER BY what, id
