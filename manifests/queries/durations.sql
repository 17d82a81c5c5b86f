-- How long the clips are.
--
-- Columns:
--   from_s              shortest in the bin
--   num_kept            kept clips; stills do not count
--   num_rejected        rejected clips
--   hours_kept          length of the kept clips
SELECT
    CASE
        WHEN duration_s < 1 THEN 0 WHEN duration_s < 2 THEN 1 WHEN duration_s < 3 THEN 2 WHEN duration_s < 5 THEN 3
        WHEN duration_s < 10 THEN 5 WHEN duration_s < 15 THEN 10 WHEN duration_s < 20 THEN 15
        WHEN duration_s < 30 THEN 20 WHEN duration_s < 60 THEN 30 ELSE 60
    END AS from_s,
    count(*) FILTER (decision = 'keep') AS num_kept,
    count(*) FILTER (decision = 'reject') AS num_rejected,
    round(coalesce(sum(duration_s) FILTER (decision = 'keep'), 0) / 3600, 6) AS hours_kept
FROM clips
WHERE kind = 'video' AND duration_s IS NOT NULL
GROUP BY ALL
ORDER BY from_s
